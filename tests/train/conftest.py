"""A tiny decoder with everything training touches, a loader of twenty lines, and a trainer over both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fathom.model.build import build
from fathom.model.vision import ImageBatch
from fathom.spec import BalanceSpec, GroupLimited, LatentAttention, MixtureOfExperts, ModelSpec, RouterSpec
from fathom.spec.train import AdamWSpec, BatchSpec, Checkpointing, Constant, TrainSpec
from fathom.train import Trainer

MODEL = ModelSpec(
    name="tiny",
    family="deepseek_v3",
    vocab_size=64,
    hidden_size=16,
    num_hidden_layers=2,
    attention=LatentAttention(num_heads=2, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8),
    max_position_embeddings=32,
    intermediate_size=32,
    first_k_dense_replace=1,
    num_nextn_predict_layers=1,
    moe=MixtureOfExperts(
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        n_shared_experts=1,
        router=RouterSpec(
            score="sigmoid",
            select=GroupLimited(n_group=2, topk_group=1, group_score="top2_sum"),
            selection_bias=True,
            normalize=True,
            balance=BalanceSpec(sequence_loss=0.01, bias_update_rate=0.01, capacity_factor=1.0, devices=2),
        ),
    ),
)
TRAIN = TrainSpec(
    sequence_length=16,
    total_tokens=12 * 4 * 16,
    batch=BatchSpec(size=4, micro_batch_size=2),
    optimizer=AdamWSpec(lr=0.01),
    schedule=Constant(warmup_steps=3),
    log_every_steps=2,
    checkpoint=Checkpointing(every_steps=5, every_seconds=None),
)


@dataclass(frozen=True)
class FakeBatch:
    tokens_BT1: Tensor
    source_B: Tensor
    images: ImageBatch | None = None
    targets_BT: Tensor | None = None
    ends_BT: Tensor | None = None


class FakeLoader:
    """Random patterns, each batch drawn from its number: resumable by one integer."""

    def __init__(self, length: int = 16, vocabulary: int = 64) -> None:
        self.length, self.vocabulary, self.number = length, vocabulary, 0

    def next(self, batch_size: int) -> FakeBatch:
        generator = torch.Generator().manual_seed(self.number)
        self.number += 1
        start = torch.randint(0, self.vocabulary, (batch_size, 1), generator=generator)
        tokens = (start + torch.arange(self.length + 1) * (1 + start % 3)) % self.vocabulary
        return FakeBatch(tokens, start[:, 0] % 3)

    def state(self) -> dict[str, Any]:
        return {"number": self.number}

    def restore(self, state: dict[str, Any]) -> None:
        self.number = state["number"]


def new_trainer(directory: Path, *, model: ModelSpec = MODEL, train: TrainSpec = TRAIN, **options: Any) -> Trainer:
    torch.set_num_threads(1)
    spec = replace(model, initializer_range=0.1)
    loader = options.pop("loader", None) or FakeLoader()
    options.setdefault("bytes_per_token", {"stories": 4.0, "code": 2.0})
    return Trainer(build(spec), train, loader, directory, **options)


@pytest.fixture
def make_trainer() -> Callable[..., Trainer]:
    return new_trainer


@pytest.fixture
def make_loader() -> Callable[..., FakeLoader]:
    return FakeLoader


@pytest.fixture
def model_spec() -> ModelSpec:
    return MODEL


@pytest.fixture
def train_spec() -> TrainSpec:
    return TRAIN
