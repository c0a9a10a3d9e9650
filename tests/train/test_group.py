"""Ranks that each take a part of a batch learn what one process learns from all of it, and stop and save together."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fathom.checkpoint import store
from fathom.data.packed import PackedBatch
from fathom.errors import Interrupted, ResourceError, TrainError
from fathom.model.build import build
from fathom.progress import NullProgress
from fathom.spec import ModelSpec
from fathom.spec.train import BatchSpec, Checkpointing, TrainSpec
from fathom.train import stage as stage_module
from fathom.train.gradients import Gradients
from fathom.train.group import ALONE, Group, any_rank, gathered
from fathom.train.loop import TrainSummary
from fathom.train.micro_batch import batch_size, split
from fathom.train.optimizer import gradient_norm, make_optimizer
from fathom.train.protocols import TokenBatch
from fathom.train.step import StepRunner
from tests.train.conftest import TRAIN, FakeBatch, FakeLoader, new_trainer
from tests.train.ranks import ThreadGroup, run_ranks
from tests.train.test_micro_batch import packed
from tests.train.test_trainer import lines

Batch = TokenBatch | PackedBatch


def rows_of(rank: int, size: int, batch: TokenBatch) -> FakeBatch:
    tokens_BT1, source_B = (tensor.chunk(size)[rank] for tensor in (batch.tokens_BT1, batch.source_B))
    targets_BT = None if batch.targets_BT is None else batch.targets_BT.chunk(size)[rank]
    return FakeBatch(tokens_BT1, source_B, targets_BT=targets_BT)


def sequences_of(rank: int, size: int, batch: PackedBatch) -> PackedBatch:
    count = len(batch.lengths) // size
    chosen = slice(rank * count, (rank + 1) * count)
    places = slice(sum(batch.lengths[: chosen.start]), sum(batch.lengths[: chosen.stop]))
    columns = {name: column[places] for name, column in batch.columns.items()}
    return PackedBatch(batch.tokens_N[places], batch.targets_N[places], batch.lengths[chosen], columns)


def part_of(rank: int, size: int, batch: Batch) -> Batch:
    return sequences_of(rank, size, batch) if isinstance(batch, PackedBatch) else rows_of(rank, size, batch)


class Took:
    """One step as a rank took it: what it reports, the gradients that it used, the state that it left."""

    def __init__(self, spec: ModelSpec, train: TrainSpec, batch: Batch, group: Group) -> None:
        model = build(spec).train()
        runner = StepRunner(model, make_optimizer(model, train.optimizer), train, sources=2, group=group)
        own = part_of(group.rank, group.size, batch)
        micros = split(own, train.batch.micro_batch_size, train.sequence_length, runner.device, group)
        sequences, self.tokens = batch_size(own, group)
        self.gradients: Gradients = runner.accumulate(micros, sequences, 1, observe=True)
        self.grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        runner.apply(self.gradients, 0.01)
        self.state: dict[str, Tensor] = model.state_dict()


def assert_alike(mine: Took, alone: Took) -> None:
    left, right = mine.gradients, alone.gradients
    assert mine.tokens == alone.tokens
    assert left.norm_value == pytest.approx(right.norm_value, rel=1e-6)
    for name in ("objective", "balance", "mtp", "loss"):
        assert getattr(left, name) == pytest.approx(getattr(right, name), abs=1e-6), name
    assert dict(left.sums) == pytest.approx(dict(right.sums))
    assert left.observation is not None
    assert right.observation is not None
    assert left.observation.dropped == right.observation.dropped
    assert left.observation.tokens_X == right.observation.tokens_X
    assert left.observation.nats_X == pytest.approx(right.observation.nats_X, rel=1e-6)
    assert left.counts_LE is not None
    assert right.counts_LE is not None
    assert torch.equal(left.counts_LE, right.counts_LE)
    for name, grad in alone.grads.items():
        torch.testing.assert_close(mine.grads[name], grad, rtol=1e-5, atol=1e-6, msg=name)
    for name, tensor in alone.state.items():
        exact = name.endswith("e_score_correction_bias")
        torch.testing.assert_close(mine.state[name], tensor, rtol=0, atol=0 if exact else 2e-3, msg=name)


def some_masked(batch: FakeBatch) -> FakeBatch:
    """Most targets of the first rows count for nothing, so that ranks' parts differ in size."""
    targets_BT = batch.tokens_BT1[:, 1:].clone()
    targets_BT[0, 2:] = -100
    targets_BT[1, :9] = -100
    return replace(batch, targets_BT=targets_BT)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_ranks_on_rows_take_the_step_of_the_whole_batch(
    model_spec: ModelSpec, train_spec: TrainSpec, size: int, masked: bool
) -> None:
    train = replace(train_spec, batch=BatchSpec(size=8, micro_batch_size=2))
    batch = FakeLoader().next(8)
    batch = some_masked(batch) if masked else batch
    spec = replace(model_spec, initializer_range=0.1)
    alone = Took(spec, train, batch, ALONE)
    assert alone.gradients.balance > 0
    assert alone.gradients.mtp > 0
    for mine in run_ranks(lambda group: Took(spec, train, batch, group), size):
        assert isinstance(mine, Took), mine
        assert_alike(mine, alone)


def test_ranks_on_packed_sequences_take_the_step_of_the_whole_batch(
    model_spec: ModelSpec, train_spec: TrainSpec
) -> None:
    train = replace(train_spec, batch=BatchSpec(size=8, micro_batch_size=1), sequence_length=12)
    batch = packed((4, 8, 9, 3), ignored=6)
    spec = replace(model_spec, initializer_range=0.1)
    alone = Took(spec, train, batch, ALONE)
    for mine in run_ranks(lambda group: Took(spec, train, batch, group)):
        assert isinstance(mine, Took), mine
        assert_alike(mine, alone)


def test_parts_of_a_batch_know_their_place_in_it(train_spec: TrainSpec) -> None:
    batch = FakeLoader().next(6)

    def cut(group: ThreadGroup) -> list[tuple[int, int, float, float]]:
        micros = split(rows_of(group.rank, group.size, batch), 2, 16, torch.device("cpu"), group)
        return [(m.sequences.start, m.sequences.stop, m.target_fraction, m.token_fraction) for m in micros]

    assert run_ranks(cut) == [
        [(0, 2, 1 / 3, 1 / 3), (2, 3, 1 / 6, 1 / 6)],
        [(3, 5, 1 / 3, 1 / 3), (5, 6, 1 / 6, 1 / 6)],
    ]


def test_a_step_that_is_not_finite_on_one_rank_is_refused_on_all(tmp_path: Path) -> None:
    def train(group: ThreadGroup) -> TrainSummary:
        trainer = ranked_trainer(tmp_path / str(group.rank), group)
        if group.rank == 1:
            with torch.no_grad():
                trainer.model.norm.weight.fill_(torch.inf)
        return trainer.run()

    for outcome in run_ranks(train):
        assert isinstance(outcome, TrainError)
        assert "step 1: loss is nan" in str(outcome)


class Part:
    """A loader of one rank's part of every batch."""

    def __init__(self, group: Group) -> None:
        self.group, self.whole = group, FakeLoader()

    def next(self, count: int) -> FakeBatch:
        return rows_of(self.group.rank, self.group.size, self.whole.next(count))

    def state(self) -> dict[str, Any]:
        return self.whole.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.whole.restore(state)


def ranked_trainer(directory: Path, group: Group, **options: Any) -> Any:
    return new_trainer(directory, loader=Part(group), group=group, **options)


def test_trainers_of_two_ranks_end_where_one_does_and_one_of_them_writes(tmp_path: Path) -> None:
    trainers: dict[int, Any] = {}

    def train(group: ThreadGroup) -> TrainSummary:
        trainers[group.rank] = ranked_trainer(tmp_path / "ranks", group)
        return trainers[group.rank].run()  # type: ignore[no-any-return]

    alone = new_trainer(tmp_path / "alone")
    expected = alone.run()
    for summary in run_ranks(train):
        assert isinstance(summary, TrainSummary), summary
        assert (summary.steps, summary.tokens) == (expected.steps, expected.tokens)
        assert summary.loss == pytest.approx(expected.loss, abs=1e-4)
    left, right = (trainers[rank].model.state_dict() for rank in (0, 1))
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())
    names = [path.name for path in store.list_checkpoints(tmp_path / "ranks" / "checkpoints")]
    assert names == [path.name for path in store.list_checkpoints(tmp_path / "alone" / "checkpoints")]
    mine, theirs = (lines(tmp_path / name) for name in ("ranks", "alone"))
    assert [line["step"] for line in mine] == [line["step"] for line in theirs]
    assert [line["loss"] for line in mine] == pytest.approx([line["loss"] for line in theirs], abs=1e-4)


class Signals:
    """A stop request that one rank gets at a step of its own."""

    def __init__(self, name: str | None) -> None:
        self.signal_name = name

    def __enter__(self) -> Signals:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def test_a_stop_that_one_rank_is_asked_for_stops_all_after_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = threading.local()

    class AtStep3(NullProgress):
        def update(self, *counts: object, **options: object) -> None:
            own.steps = getattr(own, "steps", 0) + 1
            if own.rank == 1 and own.steps == 3:
                own.stop.signal_name = signal.SIGTERM.name

    def stop_request() -> Signals:
        own.stop = Signals(None)
        return own.stop  # type: ignore[no-any-return]

    monkeypatch.setattr("fathom.train.loop.StopRequest", stop_request)

    def train(group: ThreadGroup) -> TrainSummary:
        own.rank = group.rank
        return ranked_trainer(tmp_path, group, progress=AtStep3()).run()  # type: ignore[no-any-return]

    first, second = run_ranks(train)
    assert isinstance(first, Interrupted)
    assert isinstance(second, Interrupted)
    assert "a signal to another rank after step 3" in str(first)
    assert "SIGTERM after step 3" in str(second)
    assert store.latest(tmp_path / "checkpoints") == store.step_directory(tmp_path / "checkpoints", 3)


def test_rank_0_says_when_a_checkpoint_is_due_and_its_failure_is_everyones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, saved, real = threading.local(), [], time.monotonic

    def monotonic() -> float:
        if not hasattr(clock, "rank"):  # a thread of another test's server
            return real()
        clock.seconds = getattr(clock, "seconds", 0.0) + (1.0 if clock.rank == 0 else 1e6)
        return float(clock.seconds)

    def fail(directory: Path, **parts: Any) -> Path:
        saved.append(directory.name)
        raise ResourceError("no space; free some")

    monkeypatch.setattr(stage_module.time, "monotonic", monotonic)
    monkeypatch.setattr(stage_module, "save_state", fail)
    spec = replace(TRAIN, checkpoint=Checkpointing(every_steps=None, every_seconds=5.0))

    def train(group: ThreadGroup) -> TrainSummary:
        clock.rank = group.rank
        return ranked_trainer(tmp_path, group, train=spec).run()  # type: ignore[no-any-return]

    for outcome in run_ranks(train):
        assert isinstance(outcome, ResourceError)
    steps = [int(name[-8:]) for name in saved]
    assert steps[-1] == 12  # the last one is tried whenever the others were
    assert 1 < len(steps) < 6


def test_one_process_alone_agrees_with_itself() -> None:
    tensor = torch.tensor([1.0, 2.0])
    assert ALONE.sum(tensor) is tensor
    assert ALONE.max(tensor) is tensor
    assert ALONE.broadcast("value") == "value"
    assert [any_rank(ALONE, flag) for flag in (True, False)] == [True, False]
    assert gathered(ALONE, (3, 4)) == [[3, 4]]
    assert (
        run_ranks(lambda group: (any_rank(group, group.rank == 1), gathered(group, (group.rank,))))
        == [(True, [[0], [1]])] * 2
    )


def test_the_norm_of_sharded_gradients_is_a_plain_number(tmp_path: Path) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    distributed.init_process_group("gloo", store=distributed.FileStore(str(tmp_path / "s"), 1), rank=0, world_size=1)
    try:
        parameter = distribute_tensor(torch.tensor([3.0, 4.0]), init_device_mesh("cpu", (1,))).requires_grad_()
        (parameter * parameter.detach()).sum().backward()
        norm = gradient_norm([parameter])
        assert type(norm) is Tensor
        assert norm.item() == 5.0
    finally:
        distributed.destroy_process_group()
