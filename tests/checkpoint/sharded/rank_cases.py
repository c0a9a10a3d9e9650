"""What each rank of the tests does; every function runs on all ranks of one launch."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from fathom.checkpoint import regions, store
from fathom.checkpoint.sharded.loading import load_sharded, open_checkpoint
from fathom.checkpoint.sharded.saving import ShardedSaver, save_sharded
from fathom.checkpoint.sharded.storage import SafetensorsWriter
from fathom.errors import CheckpointError, FathomError, ResourceError
from fathom.spec import to_mapping
from tests.checkpoint.test_fathom_checkpoint import SPEC, state

SHAPES: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
    "cube": (torch.float32, (7, 5, 3)),
    "half": (torch.bfloat16, (6, 8)),
    "few": (torch.float32, (3,)),
    "flags": (torch.bool, (9,)),
    "none": (torch.float32, (0, 4)),
    "scalar": (torch.int64, ()),
    "copied": (torch.float32, (600, 500)),
    "plain": (torch.float64, (5, 2)),
}
SAVED: dict[str, tuple[Placement, Placement]] = {
    "cube": (Shard(1), Shard(0)),
    "half": (Shard(1), Shard(1)),
    "few": (Shard(0), Shard(0)),
    "flags": (Replicate(), Shard(0)),
    "none": (Shard(1), Replicate()),
    "scalar": (Replicate(), Replicate()),
    "copied": (Replicate(), Replicate()),
}
MIB = 1 << 20


def whole(name: str, seed: int = 0) -> Tensor:
    dtype, shape = SHAPES[name]
    generator = torch.Generator().manual_seed(sum(name.encode()) + seed)
    numbers = torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=generator)
    return numbers.to(dtype)


def spread(tensor: Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> DTensor:
    """Distribute without communication: every rank has the whole tensor here."""
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def saved_state(mesh: DeviceMesh, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    model: dict[str, Tensor] = {name: spread(whole(name, seed), mesh, SAVED[name]) for name in SAVED}
    model |= {"plain": whole("plain", seed), "tied": model["cube"]}
    moments = {"cube/exp_avg": spread(whole("cube", seed) * 2, mesh, SAVED["cube"]), "cube/step": torch.tensor(7.0)}
    return {"model": model, "optimizer": moments}


@dataclass(frozen=True)
class Ranks:
    """This rank, the group of all, and where files go."""

    rank: int
    group: Any
    folder: Path

    def refused(self, kind: type[FathomError], words: str, work: Callable[[], object]) -> None:
        """Check that every rank gets the same error."""
        with pytest.raises(kind, match=words) as caught:
            work()
        found: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(found, str(caught.value), group=self.group)
        assert len(set(found)) == 1, found


def everything(rank: int, folder: Path) -> None:
    """All cases of four ranks, in one launch."""
    ranks = Ranks(rank, dist.new_group(backend="gloo"), folder)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    directory = folder / "saved" / "step-00000001"
    documents, files = {"state": {"step": 1}}, [folder / "note.txt"]
    save_sharded(directory, tensors=saved_state(mesh), group=ranks.group, documents=documents, files=files)
    for check in (_other_meshes, _one_process_checkpoints, _model_for_export, _staging, _memory):
        check(ranks, directory)
    for check in (_refused_saves, _refused_loads, _full_disk, _damage, _killed):
        check(ranks, directory)
    (folder / f"rank-{rank}.done").touch()


def _other_meshes(ranks: Ranks, directory: Path) -> None:
    meshes: list[tuple[int, ...] | list[int]] = [(4,), (2, 2), (1, 2, 2), [0, 1, 2], [2, 3], [1]]
    for number, shape in enumerate(meshes):
        members = list(range(4)) if isinstance(shape, tuple) else shape
        mesh = DeviceMesh("cpu", torch.tensor(members).view(shape if isinstance(shape, tuple) else (len(shape),)))
        group = dist.new_group(members, backend="gloo")
        if ranks.rank in members:
            _load(open_checkpoint(directory, group), mesh, group, number)
        dist.barrier(ranks.group)


def _load(opened: store.Checkpoint, mesh: DeviceMesh, group: Any, number: int) -> None:
    expected: dict[str, Tensor] = {}
    for name in (*SHAPES, "tied"):
        tensor = whole("cube" if name == "tied" else name)
        dims: list[Placement] = [Replicate(), *map(Shard, range(tensor.dim()))]
        placements = [dims[(number + len(name) + axis) % len(dims)] for axis in range(mesh.ndim)]
        expected[name] = spread(tensor, mesh, placements)
    destination = {name: blank(tensor) for name, tensor in expected.items()}
    doubled = spread(whole("cube") * 2, mesh, [Shard(2)] * mesh.ndim)
    moments = {"cube/exp_avg": blank(doubled), "cube/step": torch.zeros(())}
    load_sharded(opened, {"model": destination, "optimizer": moments}, group)
    for name, tensor in expected.items():
        assert torch.equal(local_part(destination[name]), local_part(tensor)), (number, name)
    assert torch.equal(local_part(moments["cube/exp_avg"]), local_part(doubled))
    assert moments["cube/step"] == 7


def _one_process_checkpoints(ranks: Ranks, directory: Path) -> None:
    """A checkpoint of one process, with gate and up joined as it once was, loaded in parts."""
    place = ranks.folder / "one"
    joined = torch.arange(12 * 5.0).view(12, 5)
    if ranks.rank == 0:
        named = {name: whole(name) for name in SHAPES} | {"layers.0.mlp.gate_up_proj.weight": joined}
        store.save(place, tensors={"model": named}, documents={})
    dist.barrier(ranks.group)
    mesh = init_device_mesh("cpu", (4,))
    wanted = {
        "layers.0.mlp.gate_up_proj.weight": spread(joined.view(2, 6, 5), mesh, [Shard(1)]),
        "copied": spread(whole("copied"), mesh, [Shard(1)]),
    }
    destination = {name: blank(tensor) for name, tensor in wanted.items()}
    load_sharded(open_checkpoint(place, ranks.group), {"model": destination}, ranks.group, partial=True)
    assert all(torch.equal(local_part(destination[name]), local_part(tensor)) for name, tensor in wanted.items())
    rows = blank(spread(whole("copied"), mesh, [Shard(0)]))
    with _bytes_read() as count:
        load_sharded(open_checkpoint(place, ranks.group), {"model": {"copied": rows}}, ranks.group, partial=True)
    assert count[0] == local_part(rows).nbytes


def _model_for_export(ranks: Ranks, directory: Path) -> None:
    mesh = init_device_mesh("cpu", (2, 2))
    model = {
        name: spread(tensor, mesh, [Shard(tensor.dim() - 1), Shard(0)]) if tensor.dim() > 1 else tensor
        for name, tensor in state().items()
    }
    documents = {"spec": {"model": to_mapping(SPEC)}}
    save_sharded(ranks.folder / "model", tensors={"model": model}, group=ranks.group, documents=documents)


def _staging(ranks: Ranks, directory: Path) -> None:
    """What is saved is what was there when ``save`` was called, and its memory is used again."""
    mesh = init_device_mesh("cpu", (2, 2))
    saver, tensors, seen = ShardedSaver(ranks.group), saved_state(mesh, seed=1), []
    for number in (2, 3):
        place = directory.with_name(f"step-0000000{number}")
        assert saver.save(place, tensors=tensors, published=seen.append, wait=False) == place
        before = {key: buffer.data_ptr() for key, buffer in saver._staging._buffers.items()}
        for tensor in tensors["model"].values():
            local_part(tensor).zero_()
    assert saver.wait() == place
    assert saver.wait() is None
    assert before == {key: buffer.data_ptr() for key, buffer in saver._staging._buffers.items()}
    assert seen == ([directory.with_name(f"step-0000000{number}") for number in (2, 3)] if ranks.rank == 0 else [])
    saver.close()
    assert saver._staging.nbytes == 0


def _memory(ranks: Ranks, directory: Path) -> None:
    """Neither saving nor loading holds more than a small part of what a rank has, let alone of the whole."""
    if sys.platform != "linux":  # no other system says how much memory a process took at most since a moment
        return
    mesh = init_device_mesh("cpu", (4,))
    local = torch.full((8 * MIB // 4, 4), ranks.rank + 1.0, dtype=torch.bfloat16).view(-1, 1024)
    tensors = {"model": {"huge": DTensor.from_local(local, mesh, [Shard(0)], run_check=False)}}
    with _grown() as grown:
        save_sharded(ranks.folder / "huge", tensors=tensors, group=ranks.group)
    assert grown[0] < 12 * MIB < local.nbytes, grown
    local.zero_()
    opened = open_checkpoint(ranks.folder / "huge", ranks.group)
    with _grown() as grown:
        load_sharded(opened, tensors, ranks.group)
    assert grown[0] < 12 * MIB, grown
    assert (local == ranks.rank + 1.0).all()


def _refused_saves(ranks: Ranks, directory: Path) -> None:
    mesh, place = init_device_mesh("cpu", (4,)), ranks.folder / "unusable"
    part = DTensor.from_local(torch.ones(1), mesh, [Shard(0)], run_check=False)
    partial = DTensor.from_local(torch.ones(2), mesh, [Partial()], run_check=False)
    missing = {} if ranks.rank == 3 else {"w": part}
    cases: list[tuple[str, dict[str, dict[str, Tensor]]]] = [
        ("rank 0 and 3 more: model/w: is a partial sum", {"model": {"w": partial}}),
        ("w: is torch.float32 of .* on rank 0 and .* on rank 1", {"model": {"w": torch.ones(ranks.rank + 1)}}),
        ("do not make whole tensors", {"model": missing, "other": {"w": torch.ones(1)}}),
        ("file stem '../x'", {"../x": {"w": part}}),
    ]
    for words, tensors in cases:
        ranks.refused(CheckpointError, words, _saving(place, tensors, ranks.group))
    assert not place.exists()


def _saving(place: Path, tensors: dict[str, dict[str, Tensor]], group: Any) -> Callable[[], object]:
    return lambda: save_sharded(place, tensors=tensors, group=group)


def _refused_loads(ranks: Ranks, directory: Path) -> None:
    opened = open_checkpoint(directory, ranks.group)
    plain = torch.ones(2 if ranks.rank == 2 else 5, 2)
    cases: list[tuple[str, Tensor, str]] = [
        ("absent", torch.ones(1), "model/absent is missing"),
        ("plain", plain, r"rank 2: .*plain has shape \(5, 2\) instead of \(2, 2\)"),
        ("plain", torch.ones(5, 2), "model/copied is unexpected"),
    ]
    for name, tensor, words in cases:
        wanted = {"model": {name: tensor}}
        ranks.refused(CheckpointError, words, lambda wanted=wanted: load_sharded(opened, wanted, ranks.group))  # type: ignore[misc]


def _full_disk(ranks: Ranks, directory: Path) -> None:
    """A rank that cannot write stops all, and nothing is left; saving later works."""
    mesh = init_device_mesh("cpu", (2, 2))
    saver, place = ShardedSaver(ranks.group), directory.with_name("step-00000009")
    for wait in (True, False):
        with _no_room(ranks.rank == 2):
            ranks.refused(
                ResourceError,
                "rank 2: .*step-00000009: not written, the file exceeds a size limit",
                lambda wait=wait: (saver.save(place, tensors=saved_state(mesh), wait=wait), saver.wait()),  # type: ignore[misc]
            )
        assert sorted(path.name for path in directory.parent.iterdir()) == [f"step-0000000{n}" for n in (1, 2, 3)]
    saver.save(place, tensors=saved_state(mesh))
    dist.barrier(ranks.group)
    if ranks.rank == 0:
        shutil.rmtree(place)
    saver.close()


def _damage(ranks: Ranks, directory: Path) -> None:
    copies = {name: ranks.folder / name for name in ("flipped", "absent")}
    if ranks.rank == 0:
        for copy in copies.values():
            shutil.copytree(directory, copy)
        file = copies["flipped"] / "model-00001-of-00004.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        (copies["absent"] / file.name).unlink()
    dist.barrier(ranks.group)
    piece = "model-00001-of-00004.safetensors"
    for name, words in (("flipped", rf"rank \d: .*{piece}: has the wrong SHA-256"), ("absent", f"{piece}: is missing")):
        place = copies[name]
        ranks.refused(CheckpointError, words, lambda place=place: open_checkpoint(place, ranks.group))  # type: ignore[misc]


def _killed(ranks: Ranks, directory: Path) -> None:
    """Rank 3 dies while it writes: the others end soon."""

    def die(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    tensors = saved_state(init_device_mesh("cpu", (2, 2)))
    if ranks.rank == 3:
        SafetensorsWriter.write_data = die  # type: ignore[assignment, method-assign]
    with pytest.raises(RuntimeError):
        save_sharded(directory.with_name("step-00000009"), tensors=tensors, group=ranks.group)


def local_part(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def blank(tensor: Tensor) -> Tensor:
    """Return a tensor of the same layout, filled with what is in no test's tensor."""
    return torch.zeros_like(tensor) if tensor.dtype == torch.bool else torch.full_like(tensor, 101)


@contextmanager
def _no_room(here: bool) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if here:
        resource.setrlimit(resource.RLIMIT_FSIZE, (256, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def _bytes_read() -> Iterator[list[int]]:
    fill, count = regions.fill, [0]

    def counting(file: Any, place: int, memory: memoryview) -> None:
        count[0] += len(memory)
        fill(file, place, memory)

    regions.fill = counting
    try:
        yield count
    finally:
        regions.fill = fill


@contextmanager
def _grown() -> Iterator[list[int]]:
    """Yield a list that then holds by how many bytes the most of resident memory exceeded what there was."""
    Path("/proc/self/clear_refs").write_text("5")
    found = [0]
    before = _resident("VmRSS")
    yield found
    found[0] = _resident("VmHWM") - before


def _resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
