"""Which boxes of a sharded tensor each rank holds, and which of them it writes: arithmetic on shapes alone.

A DTensor's placements say how it is split: dimension by dimension of the mesh, each in the ceil-sized chunks of
``torch.chunk``. ``_StridedShard`` (FSDP over tensor parallelism) splits in the other order, so that a rank may hold
several runs of rows. What replicas hold in common is shared out among them: large boxes are cut, small ones have one
writer each, which their name decides.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from torch.distributed.tensor import Partial, Placement, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from fathom.errors import CheckpointError

CUT_BYTES = 1 << 20
"""Bytes from which replicas write parts of a box each."""

_Run = tuple[int, int]
"""First index and length."""


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a tensor: ``offset`` in the whole tensor, and ``local`` in what a rank holds of it."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    local: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a tensor lies on a mesh, as one rank sees it: ``coordinate`` is the rank's place on it."""

    placements: tuple[Placement, ...] = ()
    mesh: tuple[int, ...] = ()
    coordinate: tuple[int, ...] = ()

    def held(self, shape: Sequence[int]) -> list[Box]:
        """Return the boxes that the rank holds, none where its shard is empty; a tensor of no elements is one box."""
        runs = [self._runs(dim, size) for dim, size in enumerate(shape)]
        return [_box(chosen) for chosen in itertools.product(*(_with_starts(each) for each in runs))]

    def written(self, name: str, shape: Sequence[int], itemsize: int) -> list[Box]:
        """Return the boxes that the rank writes: over all ranks of the mesh they tile the tensor, each once."""
        replicas, index = self._replicas()
        found = [_share(box, name, itemsize, replicas, index) for box in self.held(shape)]
        return [box for box in found if box is not None]

    def check(self, name: str) -> None:
        """Raise ``CheckpointError`` for a tensor whose values are spread over ranks as parts of a sum."""
        if any(isinstance(placement, Partial) for placement in self.placements):
            raise CheckpointError(f"{name}: is a partial sum on each rank ({self.placements}); redistribute it first")

    def _runs(self, dim: int, size: int) -> list[_Run]:
        runs: list[_Run] = [(0, size)]
        for placement, count, index in zip(self.placements, self.mesh, self.coordinate, strict=True):
            if isinstance(placement, _StridedShard) and placement.dim == dim:
                parts = [_chunk(runs, int(placement.split_factor), part) for part in range(int(placement.split_factor))]
                runs = _joined([run for part in parts for run in _chunk(part, count, index)])
            elif isinstance(placement, Shard) and placement.dim == dim:
                runs = _chunk(runs, count, index)
        return runs

    def _replicas(self) -> tuple[int, int]:
        """Return how many ranks hold the same boxes, and which of them this is."""
        replicas, index = 1, 0
        for placement, count, place in zip(self.placements, self.mesh, self.coordinate, strict=True):
            if not isinstance(placement, Shard | _StridedShard):
                replicas, index = replicas * count, index * count + place
        return replicas, index


def _chunk(runs: Sequence[_Run], count: int, index: int) -> list[_Run]:
    """Return one of ``count`` chunks of the indices in ``runs``, of equal size but for the last ones."""
    total = sum(length for _, length in runs)
    if count == 1 or not total:
        return list(runs) if index == 0 else []
    size = -(-total // count)
    first, last = index * size, min((index + 1) * size, total)
    found, place = [], 0
    for start, length in runs:
        low, high = max(first - place, 0), min(last - place, length)
        if low < high:
            found.append((start + low, high - low))
        place += length
    return found


def _joined(runs: Sequence[_Run]) -> list[_Run]:
    found: list[_Run] = []
    for start, length in runs:
        if found and sum(found[-1]) == start:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((start, length))
    return found


def _with_starts(runs: Sequence[_Run]) -> list[tuple[int, int, int]]:
    """Return each run with its place among the local indices."""
    starts = itertools.accumulate((length for _, length in runs), initial=0)
    return [(start, length, local) for (start, length), local in zip(runs, starts, strict=False)]


def _box(chosen: Sequence[tuple[int, int, int]]) -> Box:
    offset, shape, local = zip(*chosen, strict=True) if chosen else ((), (), ())
    return Box(tuple(offset), tuple(shape), tuple(local))


def _share(box: Box, name: str, itemsize: int, replicas: int, index: int) -> Box | None:
    """Return what one of several replicas of a box writes of it."""
    dim = next((dim for dim, length in enumerate(box.shape) if length >= replicas), None)
    if replicas == 1:
        return box
    if dim is None or math.prod(box.shape) * itemsize < CUT_BYTES:
        return box if zlib.crc32(name.encode()) % replicas == index else None
    first, last = (box.shape[dim] * bound // replicas for bound in (index, index + 1))
    return Box(
        (*box.offset[:dim], box.offset[dim] + first, *box.offset[dim + 1 :]),
        (*box.shape[:dim], last - first, *box.shape[dim + 1 :]),
        (*box.local[:dim], box.local[dim] + first, *box.local[dim + 1 :]),
    )
