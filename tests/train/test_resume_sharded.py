"""A stage goes on from a checkpoint that two processes saved as from one that it saved itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from fathom.checkpoint import store
from fathom.checkpoint.sharded.saving import save_sharded
from fathom.spec.train import TrainSpec
from fathom.train import Trainer
from fathom.train.metrics import read_json_lines
from tests.checkpoint.sharded.processes import run_ranks


def halved(tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    """Split the last dimension, where there is one."""
    return distribute_tensor(tensor, mesh, [Shard(tensor.dim() - 1)], src_data_rank=None) if tensor.dim() else tensor


def shard(rank: int, folder: Path) -> None:
    """Save the tensors of a checkpoint again, each in two parts where it has rows for both."""
    mesh, latest = init_device_mesh("cpu", (2,)), store.latest(folder / "plain")
    assert latest is not None
    opened = store.Checkpoint.open(latest)
    tensors = {
        stem: {name: halved(each, mesh) for name, each in opened.tensors(stem).items()} for stem in opened.stems()
    }
    documents = {stem: opened.document(stem) for stem in ("spec", "state")}
    save_sharded(folder / latest.name, tensors=tensors, documents=documents, group=dist.new_group(backend="gloo"))


@pytest.mark.slow
def test_a_sharded_checkpoint_is_resumed_bit_for_bit(
    tmp_path: Path, make_trainer: Callable[..., Trainer], train_spec: TrainSpec
) -> None:
    plain, other = tmp_path / "plain", tmp_path / "other"
    make_trainer(plain, train=replace(train_spec, total_tokens=train_spec.total_tokens // 2)).run()
    shutil.copytree(plain, other)
    work = tmp_path / "work"
    shutil.copytree(plain / "checkpoints", work / "plain")
    run_ranks(shard, 2, work)
    latest = store.latest(other / "checkpoints")
    assert latest is not None
    shutil.rmtree(latest)
    shutil.move(work / latest.name, latest)
    assert (latest / "model.index.json").is_file()
    for place in (plain, other):
        make_trainer(place).run(resume=True)
    ends = [store.Checkpoint.open(found) for place in (plain, other) if (found := store.latest(place / "checkpoints"))]
    for stem in ("model", "optimizer"):
        first, second = (end.tensors(stem) for end in ends)
        assert list(first) == list(second)
        assert all(torch.equal(first[name], second[name]) for name in first)
    losses = [[line["loss"] for line in read_json_lines(place / "metrics.jsonl")] for place in (plain, other)]
    assert losses[0] == losses[1]
