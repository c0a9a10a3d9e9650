"""The DPO objective through the trainer's step: against plain forward passes, from its first step to its last."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.checkpoint import store
from fathom.model.decoder import Decoder
from fathom.posttrain.preferences import (
    GroupLoader,
    PreferenceObjective,
    PreferencePair,
    pair_groups,
    reference_logprobs,
)
from fathom.spec.posttrain import DpoLoss
from fathom.spec.train import AdamWSpec, BatchSpec, Checkpointing, Constant, TrainSpec
from fathom.train import Trainer
from fathom.train.metrics import read_json_lines
from fathom.train.optimizer import make_optimizer
from fathom.train.step import StepRunner
from tests.train.accumulate import take

SPEC = TrainSpec(
    sequence_length=16,
    total_tokens=16 * 4 * 40,
    batch=BatchSpec(size=4, micro_batch_size=1),
    optimizer=AdamWSpec(lr=1e-3, weight_decay=0.0),
    schedule=Constant(),
    log_every_steps=1,
    max_grad_norm=1e9,
    checkpoint=Checkpointing(every_steps=7, every_seconds=None),
)
BETA = 0.5
TOKENS = 162
"""Of all twelve pairs."""


def make_loader(model: Decoder, pairs: list[PreferencePair], *, tokens: int = 8192, length: int = 16) -> GroupLoader:
    reference = reference_logprobs(model, pairs, chunk_tokens=7, tokens=tokens)
    return GroupLoader(pair_groups(pairs, reference), sequence_length=length, seed=1)


def moved(model: Decoder) -> Decoder:
    """Return another policy than the reference."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return other


def answer_logprob(model: Decoder, tokens: list[int], learned: list[bool], *, average: bool) -> Tensor:
    """One sequence alone through the model, its logits whole: the sum over its learned tokens."""
    logits = model.logits(model(torch.tensor([tokens])).hidden_BTD)[0]
    picked = [F.log_softmax(logits[i - 1], -1)[tokens[i]] for i in range(len(tokens)) if learned[i]]
    return torch.stack(picked).mean() if average else torch.stack(picked).sum()


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_loss_and_gradient_equal_two_plain_forward_passes(
    model: Decoder, pairs: list[PreferencePair], micro_batch_size: int, average: bool
) -> None:
    policy = moved(model)
    loss_spec = DpoLoss(beta=BETA, label_smoothing=0.1, average=average)
    batch = make_loader(model, pairs, tokens=30, length=TOKENS).next(1)
    assert len(batch.lengths) == 24
    assert batch.shared_prefix_lengths is not None
    assert sum(batch.shared_prefix_lengths) > 0.2 * TOKENS
    spec = replace(SPEC, batch=BatchSpec(size=4, micro_batch_size=micro_batch_size))
    runner = StepRunner(
        policy, make_optimizer(policy, spec.optimizer), spec, objective=PreferenceObjective(loss_spec, 5)
    )
    gradients = take(runner, batch, 1, observe=True)
    got = {name: parameter.grad.clone() for name, parameter in policy.named_parameters() if parameter.grad is not None}

    policy.zero_grad()
    losses, ahead = [], []
    for pair in pairs:
        ratio = []
        for sample in (pair.chosen, pair.rejected):
            with torch.no_grad():
                before = answer_logprob(model, sample.tokens, sample.learned, average=average)
            ratio.append(answer_logprob(policy, sample.tokens, sample.learned, average=average) - before)
        x = BETA * (ratio[0] - ratio[1])
        ahead.append(x.item())
        losses.append(-0.9 * torch.log(torch.sigmoid(x)) - 0.1 * torch.log(torch.sigmoid(-x)))
    wanted = torch.stack(losses).mean()
    wanted.backward()
    assert gradients.loss == pytest.approx(wanted.item(), abs=1e-5)
    assert got.keys() == {name for name, _ in policy.named_parameters()}
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-4, atol=2e-6)
    assert gradients.sums["margin"] == pytest.approx(sum(ahead) / 12, abs=1e-5)
    assert gradients.sums["accuracy"] == pytest.approx(sum(x > 0 for x in ahead) / 12)


def test_the_first_loss_is_log_2_and_accuracy_then_rises(
    model: Decoder, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    loader = make_loader(model, pairs)
    Trainer(model, SPEC, loader, tmp_path, objective=PreferenceObjective(DpoLoss(beta=BETA), 64)).run()
    lines = read_json_lines(tmp_path / "metrics.jsonl")
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert lines[0]["margin"] == pytest.approx(0, abs=1e-5)
    last = lines[-1]
    assert last["accuracy"] == 1
    assert last["loss"] < 0.3
    assert last["margin"] == pytest.approx(last["chosen_reward"] - last["rejected_reward"], abs=1e-4)
    assert last["chosen_logprob"] > last["rejected_logprob"]


def test_a_resumed_stage_ends_as_one_that_was_not_stopped(
    model: Decoder, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    objective = PreferenceObjective(DpoLoss(beta=BETA), 64)
    short = replace(SPEC, total_tokens=16 * 4 * 12)
    whole = copy.deepcopy(model)
    Trainer(whole, short, make_loader(model, pairs), tmp_path / "whole", objective=objective).run()
    kept = tmp_path / "cut" / "checkpoints"
    kept.mkdir(parents=True)
    before_last = store.list_checkpoints(tmp_path / "whole" / "checkpoints")[0]
    before_last.rename(kept / before_last.name)
    resumed = copy.deepcopy(model)
    Trainer(resumed, short, make_loader(model, pairs), tmp_path / "cut", objective=objective).run(resume=True)
    for (name, one), other in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_the_reference_does_not_depend_on_how_passes_are_cut(model: Decoder, pairs: list[PreferencePair]) -> None:
    model.train()
    one, many = (reference_logprobs(model, pairs, chunk_tokens=9, tokens=tokens) for tokens in (1, 10**6))
    assert model.training
    for a, b, sample in zip(one, many, [s for p in pairs for s in (p.chosen, p.rejected)], strict=True):
        assert len(a) == len(sample.tokens) - 1
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
        assert [bool(x) for x in a != 0] == sample.learned[1:]
