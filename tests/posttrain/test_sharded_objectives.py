"""Objectives after pretraining read the output projection in calls of the head, where FSDP has gathered it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from fathom.data.packed import PackedBatch
from fathom.model.build import build
from fathom.posttrain.distill import DistillObjective
from fathom.posttrain.policy import PolicyObjective
from fathom.posttrain.preferences.dpo import REFERENCE, SHARE, PreferenceObjective
from fathom.posttrain.reward_model import RewardObjective
from fathom.spec.posttrain import DistillationLoss, DpoLoss, PairwiseLoss, PolicyLoss
from fathom.train.micro_batch import MicroBatch, split
from fathom.train.objective import Objective
from tests.posttrain.conftest import MODEL
from tests.sharded import one_rank, sharded, whole_gradients

__all__ = ["one_rank"]

LENGTHS = (7, 9, 5, 8)


def micro_batch() -> MicroBatch:
    count, generator = sum(LENGTHS), torch.Generator().manual_seed(3)
    tokens_N = torch.randint(3, MODEL.vocab_size, (count,), generator=generator)
    targets_N = tokens_N.roll(-1)
    targets_N[::3] = -100
    columns = {
        "row": torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)),
        "advantage": torch.randn(count, generator=generator),
        "weight": torch.full((count,), 1 / count),
        "sampled": torch.full((count,), -4.0),
        "right": torch.ones(count),
        REFERENCE: torch.full((count,), -4.0),
        SHARE: torch.full((count,), 0.5),
    }
    (micro,) = split(PackedBatch(tokens_N, targets_N, LENGTHS, columns), 1, 100, torch.device("cpu"))
    return micro


def policy(**loss: Any) -> Objective:
    return PolicyObjective(PolicyLoss(**loss), 0.7, 4, Mock())


def distill(mesh: Any) -> Objective:
    teacher = build(MODEL, seed=2).requires_grad_(False)
    teacher = teacher if mesh is None else sharded(teacher, mesh)
    return DistillObjective(teacher, DistillationLoss(), 4, Mock())


OBJECTIVES: dict[str, Callable[[Any], Objective]] = {
    "dpo": lambda _: PreferenceObjective(DpoLoss(), 4),
    "reward model": lambda _: RewardObjective(PairwiseLoss(), 2),
    "policy": lambda _: policy(),
    "policy by sequence": lambda _: policy(ratio="sequence"),
    "distillation": distill,
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_of_a_sharded_model_has_the_gradients_of_the_whole_one(name: str, one_rank: Any) -> None:
    micro, found = micro_batch(), []
    for mesh in (None, one_rank):
        model, objective = build(MODEL, seed=1), OBJECTIVES[name](mesh)
        model = model if mesh is None else sharded(model, mesh)
        loss = objective(model, model(micro.tokens_BT, packed=micro.packed).hidden_BTD, micro).loss
        loss.backward()  # type: ignore[no-untyped-call]
        found.append((loss.detach(), whole_gradients(model)))
    (loss, expected), (other, gradients) = found
    assert torch.equal(loss, other)
    assert gradients.keys() == expected.keys()
    assert "lm_head.weight" in gradients or MODEL.tie_word_embeddings
    for key, gradient in expected.items():
        assert torch.equal(gradients[key], gradient), key
