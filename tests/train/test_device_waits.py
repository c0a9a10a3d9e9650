"""A step reads the device once, at its end: shown on the meta device, which has shapes and no numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from fathom.data.packed import PackedBatch
from fathom.errors import DataError, SpecError
from fathom.model.decoder import Decoder
from fathom.spec import ModelSpec
from fathom.spec.train import TrainSpec
from fathom.train.micro_batch import MicroBatch, prefetched, split
from fathom.train.optimizer import make_optimizer
from fathom.train.step import StepRunner
from fathom.train.validation import held_out_loss
from tests.device_waits import NoDeviceWaits
from tests.train.accumulate import take

MakeLoader = Callable[..., Any]
META = torch.device("meta")


def runner_on_meta(spec: ModelSpec, train: TrainSpec, **options: Any) -> StepRunner:
    """In bfloat16: the meta device has no autocast, and grouped products take nothing else there."""
    with META:
        model = Decoder(spec).to(torch.bfloat16).train()
    return StepRunner(model, make_optimizer(model, train.optimizer), train, sources=2, **options)


def packed(columns: Mapping[str, torch.Tensor] | None = None) -> PackedBatch:
    tokens_N = torch.randint(3, 64, (26,), generator=torch.Generator().manual_seed(0))
    return PackedBatch(tokens_N, tokens_N.roll(-1), (9, 5, 12), columns or {})


@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_reads_once(
    model_spec: ModelSpec, train_spec: TrainSpec, make_loader: MakeLoader, recompute: bool
) -> None:
    runner = runner_on_meta(model_spec, replace(train_spec, activation_checkpointing=recompute))
    with NoDeviceWaits(reads=1) as waits:
        gradients = take(runner, make_loader().next(4), 1, observe=False)
        gradients = replace(gradients, norm_value=train_spec.max_grad_norm + 1)  # clip
        assert waits.count == 1
        runner.apply(gradients, 1e-3)
    assert waits.count == 1


def test_packed_sequences_with_recorded_routes_read_once(model_spec: ModelSpec, train_spec: TrainSpec) -> None:
    routes = torch.zeros(26, 1, 2, dtype=torch.int16)
    runner = runner_on_meta(model_spec, train_spec, replay_routing=True)
    with NoDeviceWaits(reads=1) as waits:
        runner.apply(take(runner, packed({"routes": routes}), 1, observe=False), 1e-3)
    assert waits.count == 1


def test_what_a_logged_step_and_a_validation_read_does_not_grow_with_micro_batches(
    model_spec: ModelSpec, train_spec: TrainSpec, make_loader: MakeLoader
) -> None:
    runner = runner_on_meta(model_spec, train_spec)
    counts = []
    for size in (4, 8):
        with NoDeviceWaits(reads=100) as waits:
            take(runner, make_loader().next(size), 1, observe=True)
            held_out_loss(runner, packed(), (size // 4, 16))
        counts.append(waits.count)
    assert counts[0] == counts[1]


def test_values_are_checked_on_the_host(model_spec: ModelSpec, train_spec: TrainSpec) -> None:
    runner = runner_on_meta(model_spec, train_spec, replay_routing=True)
    bad = packed()
    bad.tokens_N[7] = 64
    with NoDeviceWaits(), pytest.raises(DataError, match="token 64 is outside the vocabulary of 64"):
        take(runner, bad, 1, observe=False)
    routes = torch.full((26, 1, 2), 8, dtype=torch.int16)
    with NoDeviceWaits(), pytest.raises(SpecError, match='column "routes": names expert 8 of 8'):
        take(runner, packed({"routes": routes}), 1, observe=False)


@pytest.mark.parametrize(("device", "ahead"), [(torch.device("cpu"), 0), (META, 1)])
def test_one_micro_batch_is_fetched_ahead_except_on_a_cpu(device: torch.device, ahead: int) -> None:
    host, fetched = list(split(packed(), 1, 12, torch.device("cpu"))), []

    def fetch() -> Iterator[MicroBatch]:
        for micro in host:
            fetched.append(micro)
            yield micro

    seen = []
    for number, micro in enumerate(prefetched(fetch(), device), start=1):
        assert len(fetched) == min(number + ahead, len(host))
        assert micro.tokens_BT.device == device
        seen.append(micro)
    assert [micro.tokens_BT.shape for micro in seen] == [micro.tokens_BT.shape for micro in host]
    assert [micro.token_range for micro in seen] == [micro.token_range for micro in host]
