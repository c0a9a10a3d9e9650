"""What plans are compared on: models and batches that use all that training has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from fathom.data.packed import PackedBatch
from fathom.spec import BalanceSpec, GroupedQueryAttention, ModelSpec, RouterSpec
from fathom.spec.targets import IGNORE_INDEX
from fathom.spec.train import BatchSpec, TrainSpec
from fathom.train.protocols import TokenBatch
from tests.train.conftest import MODEL, TRAIN, FakeLoader

Batch = TokenBatch | PackedBatch


@dataclass(frozen=True)
class Case:
    model: ModelSpec
    train: TrainSpec
    batch: Callable[[int], Batch]


def rows(number: int, size: int = 8) -> Batch:
    loader = FakeLoader()
    loader.number = number
    return loader.next(size)


def conversations(number: int) -> PackedBatch:
    """Sequences of other lengths on each rank, some of whose tokens are not learned."""
    generator = torch.Generator().manual_seed(number)
    lengths = tuple(torch.randint(3, 20, (12,), generator=generator).tolist())
    texts = [(torch.randint(64, (1,), generator=generator) + 3 * torch.arange(length + 1)) % 64 for length in lengths]
    learned_N = torch.rand(sum(lengths), generator=generator) < 0.7
    targets_N = torch.cat([text[1:] for text in texts])
    tokens_N = torch.cat([text[:-1] for text in texts])
    return PackedBatch(tokens_N, torch.where(learned_N, targets_N, IGNORE_INDEX), lengths)


WIDE = replace(MODEL, num_hidden_layers=4, initializer_range=0.1, attention=replace(MODEL.attention, num_heads=4))
LONG = replace(
    WIDE,
    num_nextn_predict_layers=0,
    moe=replace(
        WIDE.moe,
        router=replace(WIDE.moe.router, balance=replace(WIDE.moe.router.balance, capacity_factor=None, z_loss=0.0)),
    ),
)
GROUPED = replace(
    LONG,
    family="mixtral",
    attention=GroupedQueryAttention(num_heads=4, num_kv_heads=4, head_dim=8, qkv_bias=True, out_bias=True),
    mlp_bias=True,
    moe=replace(
        LONG.moe,
        router=RouterSpec(
            score="softmax", balance=BalanceSpec(expert_loss=0.01, device_loss=0.05, communication_loss=0.02, devices=2)
        ),
    ),
)
CASES = {
    "grouped": Case(GROUPED, replace(TRAIN, batch=BatchSpec(size=8, micro_batch_size=2)), rows),
    "long": Case(LONG, replace(TRAIN, batch=BatchSpec(size=8, micro_batch_size=2)), rows),
    "packed": Case(WIDE, replace(TRAIN, batch=BatchSpec(size=8, micro_batch_size=2)), conversations),
    "many": Case(WIDE, replace(TRAIN, batch=BatchSpec(size=16, micro_batch_size=2)), partial(rows, size=16)),
    "rows": Case(WIDE, replace(TRAIN, batch=BatchSpec(size=8, micro_batch_size=2)), rows),
}
