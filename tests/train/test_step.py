"""One step: accumulation changes nothing, and biases move by the whole batch's load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fathom.model.build import build
from fathom.model.moe.balance import expert_counts
from fathom.spec import BalanceSpec, ModelSpec
from fathom.spec.targets import IGNORE_INDEX
from fathom.spec.train import BatchSpec, TrainSpec
from fathom.train.optimizer import make_optimizer
from fathom.train.step import StepRunner, counter_seed
from tests.train.accumulate import take

MakeLoader = Callable[..., Any]


def without_micro_effects(spec: ModelSpec) -> ModelSpec:
    """The model without capacity, the one thing that a micro-batch decides as a whole."""
    assert spec.moe is not None
    balance = BalanceSpec(sequence_loss=0.01, bias_update_rate=0.01)
    moe = replace(spec.moe, router=replace(spec.moe.router, balance=balance))
    return replace(spec, moe=moe, initializer_range=0.1)


def runner(model: ModelSpec, train: TrainSpec) -> StepRunner:
    decoder = build(model).train()
    return StepRunner(decoder, make_optimizer(decoder, train.optimizer), train, sources=2)


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("recompute", [False, True])
def test_micro_batches_and_recomputation_change_nothing(
    model_spec: ModelSpec, train_spec: TrainSpec, make_loader: MakeLoader, micro: int, recompute: bool
) -> None:
    spec = without_micro_effects(model_spec)
    whole = runner(spec, replace(train_spec, batch=BatchSpec(size=4, micro_batch_size=4)))
    parts = runner(
        spec, replace(train_spec, batch=BatchSpec(size=4, micro_batch_size=micro), activation_checkpointing=recompute)
    )
    batch = make_loader().next(4)
    one, two = (take(r, batch, 1, observe=True) for r in (whole, parts))
    assert two.loss == pytest.approx(one.loss, rel=1e-5)
    assert two.mtp > 0
    assert two.norm_value == pytest.approx(one.norm_value, rel=1e-4)
    for (name, left), right in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert one.counts_LE is not None
    assert two.counts_LE is not None
    assert torch.equal(one.counts_LE, two.counts_LE)
    assert one.counts_LE.sum(1).tolist() == [4 * 16 * 2, 4 * 15 * 2]
    assert one.observation is not None
    assert two.observation is not None
    assert two.observation.nats_X == pytest.approx(one.observation.nats_X)
    assert sum(one.observation.tokens_X) == 16 * int((batch.source_B < 2).sum())


def test_biases_move_once_by_the_load_of_the_whole_batch(
    model_spec: ModelSpec, train_spec: TrainSpec, make_loader: MakeLoader
) -> None:
    spec = without_micro_effects(model_spec)
    step = runner(spec, replace(train_spec, activation_checkpointing=True))
    batch = make_loader().next(4)
    with torch.no_grad():
        routing = step.model(batch.tokens_BT1[:, :-1], mtp=True).routing
    counts = torch.stack([expert_counts(routed, 8) for routed in routing]).double()
    gradients = take(step, batch, 1, observe=False)
    assert gradients.observation is None
    step.apply(gradients, 0.0)
    names = [f"{layer}.mlp.gate.e_score_correction_bias" for layer in step.layer_names]
    assert names[1].startswith("mtp.0.")
    for name, counts_E in zip(names, counts, strict=True):
        expected = 0.01 * torch.sign(counts_E.mean() - counts_E).float()
        assert torch.equal(step.model.get_buffer(name), expected)
        assert expected.abs().sum() > 0
    assert all(parameter.grad is None for parameter in step.model.parameters())


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_mtp_learns_the_targets_of_the_batch_however_it_is_cut(
    model_spec: ModelSpec, train_spec: TrainSpec, make_loader: MakeLoader, micro: int
) -> None:
    spec = without_micro_effects(model_spec)
    step = runner(spec, replace(train_spec, batch=BatchSpec(size=4, micro_batch_size=micro)))
    batch = make_loader().next(4)
    tokens, targets = batch.tokens_BT1[:, :-1], batch.tokens_BT1[:, 1:].clone()
    ends = torch.zeros_like(tokens, dtype=torch.bool)
    targets[0] = targets[1, :9] = targets[3, 5:8] = IGNORE_INDEX
    ends[1, 12] = ends[2, 3] = True
    targets[ends] = IGNORE_INDEX
    found = take(step, replace(batch, targets_BT=targets, ends_BT=ends), 1, observe=False)
    with torch.no_grad():
        hidden = step.model(tokens, mtp=True).mtp_hidden[0]
        logp = step.model.logits(hidden).log_softmax(-1)
    counted = [(b, i) for b in range(4) for i in range(15) if targets[b, i + 1] != IGNORE_INDEX and not ends[b, i]]
    total = -sum(float(logp[b, i, targets[b, i + 1]]) for b, i in counted)
    weight = step.spec.mtp_loss_weight
    assert found.mtp == pytest.approx(weight * total / int((targets != IGNORE_INDEX).sum()), rel=1e-5)


def test_mtp_is_left_out_when_it_weighs_nothing(
    model_spec: ModelSpec, train_spec: TrainSpec, make_loader: MakeLoader
) -> None:
    step = runner(model_spec, replace(train_spec, mtp_loss_weight=0.0))
    gradients = take(step, make_loader().next(4), 1, observe=True)
    assert gradients.mtp == 0
    assert gradients.counts_LE is not None
    assert gradients.counts_LE.shape == (1, 8)
    step.apply(gradients, 0.01)
    assert not step.model.get_buffer("mtp.0.block.mlp.gate.e_score_correction_bias").any()


def test_exemptions_depend_on_seed_and_step_only(
    model_spec: ModelSpec, train_spec: TrainSpec, make_loader: MakeLoader
) -> None:
    large = replace(train_spec, total_tokens=10_000)
    one, two = (runner(model_spec, replace(large, batch=BatchSpec(size=64, micro_batch_size=m))) for m in (1, 64))
    first, again, other = (each._draws(64, step).exempt_B for each, step in ((one, 5), (two, 5), (one, 6)))
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0 < first.sum() < 32
    seeds = {counter_seed(seed, step) for seed in range(20) for step in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_dense_model_and_bfloat16_train_too(
    model_spec: ModelSpec, train_spec: TrainSpec, make_loader: MakeLoader
) -> None:
    dense = replace(model_spec, moe=None, first_k_dense_replace=0, num_nextn_predict_layers=0, tie_word_embeddings=True)
    wide, narrow = (runner(dense, replace(train_spec, precision=p)) for p in ("float32", "bfloat16"))
    batch = make_loader().next(4)
    losses = [take(r, batch, 1, observe=True) for r in (wide, narrow)]
    assert losses[0].counts_LE is None
    assert losses[0].loss == pytest.approx(losses[1].loss, rel=2e-2)
    assert losses[0].loss != losses[1].loss
    narrow.apply(losses[1], 0.01)
    assert take(narrow, batch, 2, observe=False).loss < losses[1].loss
