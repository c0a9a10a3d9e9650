"""Longer work of ranks: layouts drawn at random, ranks killed at random moments, and FSDP with tensor parallelism."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

from fathom.checkpoint import regions, store
from fathom.checkpoint.sharded import placement
from fathom.checkpoint.sharded.loading import load_sharded, open_checkpoint
from fathom.checkpoint.sharded.saving import ShardedSaver, save_sharded
from fathom.train.optimizer import optimizer_tensors
from tests.checkpoint.sharded.rank_cases import SHAPES, blank, local_part, saved_state, spread, whole

LAYOUTS = 60
ROUNDS = 12
_MESHES = [(4,), (2, 2), (4, 1), (1, 4), (1, 2, 2)]


def random_layouts(rank: int, folder: Path) -> None:
    """Save in one layout and load in another; all ranks draw the same ones."""
    group, drawn = dist.new_group(backend="gloo"), random.Random(3)
    meshes = [init_device_mesh("cpu", shape) for shape in _MESHES]
    with pytest.MonkeyPatch.context() as patch:
        for number in range(LAYOUTS):
            patch.setattr(placement, "CUT_BYTES", drawn.choice([1, 1 << 20]))
            patch.setattr(regions, "BLOCK_BYTES", drawn.choice([8, 64, 1 << 22]))
            patch.setattr(regions, "_GAP_BYTES", drawn.choice([8, 1 << 16]))
            shape = [drawn.randint(0, 11) for _ in range(drawn.randint(1, 4))]
            tensor = torch.randn(shape, generator=torch.Generator().manual_seed(number)).bfloat16()
            given = _distributed(tensor, drawn, meshes)
            place = save_sharded(folder / f"{number}", tensors={"model": {"w": given}}, group=group)
            assert torch.equal(store.Checkpoint.open(place).tensors("model")["w"], tensor)
            wanted = _distributed(tensor, drawn, meshes)
            found = blank(wanted)
            load_sharded(open_checkpoint(place, group), {"model": {"w": found}}, group)
            assert torch.equal(local_part(found), local_part(wanted)), (number, shape, given, wanted)


def _distributed(tensor: Tensor, drawn: random.Random, meshes: list[DeviceMesh]) -> Tensor:
    mesh, dims = drawn.choice(meshes), range(tensor.dim())
    kinds: list[Placement] = [Replicate(), *map(Shard, dims), *(_StridedShard(dim, split_factor=2) for dim in dims)]
    return spread(tensor, mesh, [drawn.choice(kinds) for _ in range(mesh.ndim)])


def killed(rank: int, folder: Path) -> None:
    """Load the latest checkpoint and save others while training communicates, until a rank kills itself."""
    group, mesh = dist.new_group(backend="gloo"), init_device_mesh("cpu", (4,))
    number = int(folder.name.removeprefix("round-"))
    saved = folder.parent / "saved"
    latest = store.latest(saved)
    step = 0
    if latest is not None:
        opened = open_checkpoint(latest, group)
        step = int(opened.document("state")["step"])
        rows = {name: [Shard(0)] if shape else [Replicate()] for name, (_, shape) in SHAPES.items()}
        wanted = {name: spread(whole(name, step), mesh, placements) for name, placements in rows.items()}
        found = {name: blank(tensor) for name, tensor in wanted.items()}
        load_sharded(opened, {"model": found}, group, partial=True)
        assert all(torch.equal(local_part(found[name]), local_part(wanted[name])) for name in wanted)
    delay = random.Random(number).uniform(0.0, 0.3) if rank == number % 4 else None
    with pytest.raises(RuntimeError):
        _save_for_ever(ShardedSaver(group), saved, step, delay)
    (folder / f"rank-{rank}.done").touch()


def _save_for_ever(saver: ShardedSaver, saved: Path, step: int, delay: float | None) -> None:
    """Publish one checkpoint, and go on with others until this rank, or another, is killed after a delay in seconds."""
    mesh, wait = init_device_mesh("cpu", (2, 2)), True
    while True:
        step += 1
        saver.save(
            store.step_directory(saved, step),
            tensors=saved_state(mesh, step),
            documents={"state": {"step": step}},
            published=lambda path: store.prune(saved, 2),
            wait=wait,
        )
        if wait and delay is not None:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        dist.all_reduce(torch.ones(1000))
        wait = False


def fsdp(rank: int, folder: Path) -> None:
    """FSDP over tensor parallelism, whose shards are strided, and AdamW's state of it."""
    group = dist.new_group(backend="gloo")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.Linear(20, 5))
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
    fully_shard(model, mesh=mesh["data"])
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 6)).clone().square().sum().backward()
    optimizer.step()
    tensors = {"model": dict(model.state_dict()), "optimizer": optimizer_tensors(model, optimizer)}
    place = save_sharded(folder / "fsdp", tensors=tensors, group=group)
    opened = store.Checkpoint.open(place)
    for stem, named in tensors.items():
        read = opened.tensors(stem)
        assert set(read) == set(named)
        for name, tensor in named.items():
            assert torch.equal(read[name], tensor.full_tensor() if isinstance(tensor, DTensor) else tensor), name
    again = {stem: {name: blank(tensor) for name, tensor in named.items()} for stem, named in tensors.items()}
    load_sharded(opened, again, group)
    for stem, named in tensors.items():
        assert all(torch.equal(local_part(again[stem][name]), local_part(tensor)) for name, tensor in named.items())
