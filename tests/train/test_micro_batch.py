from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fathom.data.packed import PackedBatch
from fathom.errors import ContextError, DataError, SpecError
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.model.forward_options import PackedSequences
from fathom.model.moe.balance import balance_loss
from fathom.spec import BalanceSpec, GroupedQueryAttention, ModelSpec
from fathom.spec.train import BatchSpec, TrainSpec
from fathom.train.micro_batch import MicroBatch, split
from fathom.train.objective import ObjectiveOutput
from fathom.train.optimizer import make_optimizer
from fathom.train.step import StepRunner
from tests.train.accumulate import take

CPU = torch.device("cpu")


def packed(lengths: tuple[int, ...], *, ignored: int = 0, per_example: int = 1) -> PackedBatch:
    tokens_N = torch.randint(3, 64, (sum(lengths),), generator=torch.Generator().manual_seed(len(lengths)))
    targets_N = tokens_N.roll(-1)
    targets_N[:ignored] = -100
    return PackedBatch(tokens_N, targets_N, lengths, {"place": torch.arange(sum(lengths))}, per_example)


def lengths_of(micro: MicroBatch) -> tuple[int, ...]:
    assert micro.packed is not None
    return micro.packed.lengths


def prefixes_of(micro: MicroBatch) -> tuple[int, ...] | None:
    assert micro.packed is not None
    return micro.packed.shared_prefix_lengths


def unbalanced(spec: ModelSpec) -> ModelSpec:
    assert spec.moe is not None
    moe = replace(spec.moe, router=replace(spec.moe.router, balance=BalanceSpec()))
    return replace(spec, moe=moe, initializer_range=0.2)


@pytest.mark.parametrize("micro", [1, 2, 100])
def test_packed_micro_batches_hold_every_sequence_once_and_add_up(micro: int) -> None:
    batch = packed((5, 5, 9, 3, 20), ignored=7)
    micros = list(split(batch, micro, 10, CPU))
    assert torch.equal(torch.cat([m.tokens_BT[0] for m in micros]), batch.tokens_N)
    assert torch.equal(torch.cat([m.columns["place"] for m in micros]), torch.arange(42))
    assert [length for m in micros for length in lengths_of(m)] == [5, 5, 9, 3, 20]
    assert sum(m.target_fraction for m in micros) == pytest.approx(1)
    assert sum(m.token_fraction for m in micros) == pytest.approx(1)
    assert all(m.tokens_BT.shape[1] <= 10 * micro or len(lengths_of(m)) == 1 for m in micros)


def test_pairs_are_never_parted() -> None:
    micros = list(split(packed((5, 6, 7, 8, 2, 3), per_example=2), 1, 12, CPU))
    assert [lengths_of(m) for m in micros] == [(5, 6), (7, 8), (2, 3)]


def test_sequences_that_do_not_fit_their_tokens_are_refused() -> None:
    with pytest.raises(DataError, match=r"targets have shape \(4,\) instead of \(5, ...\)"):
        PackedBatch(torch.zeros(5).long(), torch.zeros(4).long(), (2, 3))
    with pytest.raises(DataError, match="leave empty ones out"):
        PackedBatch(torch.zeros(5).long(), torch.zeros(5).long(), (5, 0))


def dense(window: int | None) -> GroupedQueryAttention:
    return GroupedQueryAttention(num_heads=4, num_kv_heads=2, head_dim=8, sliding_window=window)


@pytest.mark.parametrize("attention", [None, dense(None), dense(3)], ids=["mla", "gqa", "window"])
def test_sequences_laid_end_to_end_answer_as_each_does_alone(
    model_spec: ModelSpec, attention: GroupedQueryAttention | None
) -> None:
    spec = replace(unbalanced(model_spec), num_nextn_predict_layers=0)
    model: Decoder = build(spec if attention is None else replace(spec, attention=attention))
    lengths = (4, 4, 9, 1, 4, 7)
    batch = packed(lengths)
    together_1ND = model(batch.tokens_N[None], packed=PackedSequences(lengths)).hidden_BTD
    for whole, tokens in zip(together_1ND[0].split(lengths), batch.tokens_N.split(lengths), strict=True):
        torch.testing.assert_close(whole, model(tokens[None]).hidden_BTD[0], rtol=1e-5, atol=1e-5)


def test_packed_gradients_are_the_mean_over_all_learned_tokens_however_they_are_cut(
    model_spec: ModelSpec, train_spec: TrainSpec
) -> None:
    spec = replace(unbalanced(model_spec), num_nextn_predict_layers=0)
    batch = packed((4, 9, 9, 3), ignored=6)
    expected = build(spec)
    losses = []
    for tokens, targets in zip(batch.tokens_N.split((4, 9, 9, 3)), batch.targets_N.split((4, 9, 9, 3)), strict=True):
        logits = expected.logits(expected(tokens[None]).hidden_BTD[0])
        losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="sum", ignore_index=-100))
    mean = torch.stack(losses).sum() / 19
    mean.backward()
    for size in (1, 16):
        model = build(spec)
        step = replace(train_spec, batch=BatchSpec(size=16, micro_batch_size=size), sequence_length=9)
        runner = StepRunner(model, make_optimizer(model, step.optimizer), step)
        found = take(runner, batch, 1, observe=True)
        assert found.objective == pytest.approx(mean.item(), rel=1e-5)
        for (name, left), right in zip(model.named_parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(left.grad, right.grad, rtol=1e-4, atol=1e-6, msg=name)


def sharing(lengths: tuple[int, ...], shared: tuple[int, ...]) -> PackedBatch:
    """Sequences of which some begin as the last one before them that shares nothing does."""
    plain = packed(lengths, ignored=0)
    tokens_N, targets_N = plain.tokens_N, plain.targets_N
    start = base = 0
    for length, first in zip(lengths, shared, strict=True):
        base = base if first else start
        tokens_N[start : start + first] = tokens_N[base : base + first]
        targets_N[start : start + max(shared)] = -100
        start += length
    return replace(plain, shared_prefix_lengths=shared)


LENGTHS, SHARED = (7, 8, 8, 6, 9, 9, 4), (0, 5, 5, 0, 3, 3, 0)


def test_a_shared_beginning_is_laid_once_in_every_micro_batch() -> None:
    batch = sharing(LENGTHS, SHARED)
    (whole,) = split(batch, 1, 100, CPU)
    assert (lengths_of(whole), prefixes_of(whole)) == ((7, 3, 3, 6, 6, 6, 4), SHARED)
    assert whole.columns["place"].tolist()[7:13] == [12, 13, 14, 20, 21, 22]
    micros = list(split(batch, 1, 12, CPU))
    assert [lengths_of(m) for m in micros] == [(7, 3), (8,), (6, 6), (9,), (4,)]
    assert [prefixes_of(m) for m in micros] == [(0, 5), None, (0, 3), None, None]
    assert [m.sequences for m in micros] == [slice(0, 2), slice(2, 3), slice(3, 5), slice(5, 6), slice(6, 7)]
    micros = list(split(batch, 1, 17, CPU))
    assert [(lengths_of(m), prefixes_of(m)) for m in micros] == [
        ((7, 3, 3), (0, 5, 5)),
        ((6, 6), (0, 3)),
        ((9, 4), None),
    ]
    assert sum(m.token_fraction for m in micros) == pytest.approx(1)
    assert sum(m.target_fraction for m in micros) == pytest.approx(1)
    assert sum(m.tokens_BT.shape[1] for m in micros) == 13 + 12 + 13


def test_the_first_of_a_micro_batch_lends_its_beginning_to_the_rest() -> None:
    micros = list(split(sharing((7, 8, 8, 9), (0, 5, 5, 2)), 1, 12, CPU))
    assert [(lengths_of(m), prefixes_of(m)) for m in micros] == [((7, 3), (0, 5)), ((8,), None), ((9,), None)]
    micros = list(split(sharing((7, 8, 8, 9), (0, 5, 4, 2)), 1, 19, CPU))
    assert [(lengths_of(m), prefixes_of(m)) for m in micros] == [((7, 3, 4), (0, 5, 4)), ((9,), None)]
    micros = list(split(sharing((12, 8, 8, 9), (0, 5, 6, 2)), 1, 16, CPU))
    assert [(lengths_of(m), prefixes_of(m)) for m in micros] == [((12, 3), (0, 5)), ((8, 7), (0, 2))]


def test_beginnings_that_differ_or_learn_are_refused() -> None:
    batch = sharing((4, 5), (0, 3))
    with pytest.raises(DataError, match="sequence 1 of 5 tokens does not share its first 4"):
        replace(batch, shared_prefix_lengths=(0, 4))
    with pytest.raises(DataError, match="sequence 1 of 5 tokens does not share its first 3"):
        replace(batch, targets_N=torch.zeros(9).long())
    with pytest.raises(DataError, match="sequence 0 of 4 tokens does not share its first 1"):
        replace(batch, shared_prefix_lengths=(1, 3))
    with pytest.raises(DataError, match="shared_prefix_lengths has 1 numbers for 2 sequences"):
        replace(batch, shared_prefix_lengths=(0,))


def gradients_of(spec: ModelSpec, step: TrainSpec, batch: PackedBatch) -> tuple[float, dict[str, Tensor]]:
    model = build(spec)
    runner = StepRunner(model, make_optimizer(model, step.optimizer), step, balanced=False)
    objective = take(runner, batch, 1, observe=False).objective
    return objective, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("attention", [None, dense(None), dense(3), dense(7)], ids=["mla", "gqa", "narrow", "window"])
def test_sequences_behind_a_shared_beginning_answer_and_learn_as_each_does_whole(
    model_spec: ModelSpec, train_spec: TrainSpec, attention: GroupedQueryAttention | None, recompute: bool
) -> None:
    spec = replace(unbalanced(model_spec), num_nextn_predict_layers=0)
    spec = spec if attention is None else replace(spec, attention=attention)
    batch = sharing(LENGTHS, SHARED)
    model: Decoder = build(spec)
    (micro,) = split(batch, 1, 100, CPU)
    laid_1ND = model(micro.tokens_BT, packed=micro.packed).hidden_BTD
    each = zip(laid_1ND[0].split(lengths_of(micro)), batch.tokens_N.split(LENGTHS), SHARED, strict=True)
    for own, tokens, first in each:
        torch.testing.assert_close(own, model(tokens[None]).hidden_BTD[0, first:], rtol=1e-5, atol=1e-5)
    step = replace(
        train_spec, batch=BatchSpec(size=4, micro_batch_size=2), sequence_length=9, activation_checkpointing=recompute
    )
    loss, found = gradients_of(spec, step, batch)
    plain, expected = gradients_of(spec, step, replace(batch, shared_prefix_lengths=None))
    assert loss == pytest.approx(plain, rel=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


class Nothing:
    """An objective that is zero, so that gradients are those of the balance losses."""

    def __call__(self, model: Decoder, hidden_BTD: Tensor, micro: MicroBatch) -> ObjectiveOutput:
        return ObjectiveOutput(0.0 * hidden_BTD.sum())


@pytest.mark.parametrize("micro", [1, 2, 16])
@pytest.mark.parametrize("shared", [None, SHARED], ids=["whole", "shared prefix"])
def test_sequence_balance_losses_of_packed_batches_are_means_over_sequences_however_they_are_cut(
    model_spec: ModelSpec, train_spec: TrainSpec, shared: tuple[int, ...] | None, micro: int
) -> None:
    assert model_spec.moe is not None
    balance = BalanceSpec(expert_loss=0.3, device_loss=0.2, communication_loss=0.1, sequence_loss=0.4, devices=2)
    moe = replace(model_spec.moe, router=replace(model_spec.moe.router, balance=balance))
    spec = replace(model_spec, moe=moe, initializer_range=0.2, num_nextn_predict_layers=0)
    batch = replace(sharing(LENGTHS, SHARED), shared_prefix_lengths=shared)
    expected = build(spec)
    rows = [expected(tokens[None]).routing for tokens in batch.tokens_N.split(LENGTHS)]
    mean = torch.stack([balance_loss(routed, moe) for row in rows for routed in row]).sum() / len(LENGTHS)
    mean.backward()
    model = build(spec)
    step = replace(train_spec, batch=BatchSpec(size=4, micro_batch_size=micro), sequence_length=9)
    runner = StepRunner(model, make_optimizer(model, step.optimizer), step, objective=Nothing())
    assert take(runner, batch, 1, observe=False).balance == pytest.approx(mean.item(), rel=1e-5)
    for (name, theirs), ours in zip(expected.named_parameters(), model.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_a_beginning_that_was_not_laid_is_refused(model_spec: ModelSpec) -> None:
    model = build(replace(model_spec, num_nextn_predict_layers=0))
    tokens_1N = torch.ones(1, 7).long()
    with pytest.raises(SpecError, match="4 tokens are omitted, but the last complete sequence before them has 3"):
        model(tokens_1N, packed=PackedSequences((3, 4), (0, 4)))
    with pytest.raises(SpecError, match="1 tokens are omitted"):
        model(tokens_1N, packed=PackedSequences((3, 4), (1, 1)))
    with pytest.raises(SpecError, match="has 1 numbers for 2 sequences"):
        model(tokens_1N, packed=PackedSequences((3, 4), (0,)))
    with pytest.raises(ContextError, match="33 exceed the model's context of 32"):
        model(torch.ones(1, 36).long(), packed=PackedSequences((20, 16), (0, 17)))
