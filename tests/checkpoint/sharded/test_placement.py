"""Which boxes ranks hold and write, against torch's own splitting; and a plan for a model of 16 billion parameters."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.tensor import Partial, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from fathom.checkpoint.sharded.index import tiling_fault
from fathom.checkpoint.sharded.pieces import Piece
from fathom.checkpoint.sharded.placement import Layout
from fathom.checkpoint.sharded.planning import PieceSavePlanner
from fathom.errors import CheckpointError
from fathom.families import preset
from fathom.model.build import parameter_shapes

Mesh = tuple[int, ...]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], Mesh, tuple[Placement, ...]]:
    shape = tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)))
    mesh = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    dims = st.integers(0, len(shape) - 1)
    strided = st.builds(lambda dim, factor: _StridedShard(dim, split_factor=factor), dims, st.integers(1, 3))
    placement = st.one_of(st.just(Replicate()), dims.map(Shard), strided)
    return shape, mesh, tuple(draw(placement) for _ in mesh)


def split(tensor: Tensor, placements: tuple[Placement, ...], mesh: Mesh, coordinate: Mesh) -> Tensor:
    """Return what torch gives one rank."""
    for placement, count, index in zip(placements, mesh, coordinate, strict=True):
        if isinstance(placement, Shard | _StridedShard):
            tensor = placement._split_tensor(tensor, count, with_padding=False, contiguous=False)[0][index]
    return tensor


@settings(max_examples=50)
@given(layouts())
def test_boxes_are_what_torch_gives_each_rank(drawn: tuple[tuple[int, ...], Mesh, tuple[Placement, ...]]) -> None:
    shape, mesh, placements = drawn
    whole = torch.arange(math.prod(shape)).view(shape)
    for coordinate in itertools.product(*map(range, mesh)):
        local = split(whole, placements, mesh, coordinate)
        boxes = Layout(placements, mesh, coordinate).held(shape)
        assert sum(math.prod(box.shape) for box in boxes) == local.numel()
        for box in boxes:
            inside = tuple(slice(start, start + length) for start, length in zip(box.local, box.shape, strict=True))
            there = tuple(slice(start, start + length) for start, length in zip(box.offset, box.shape, strict=True))
            assert torch.equal(local[inside], whole[there])


@settings(max_examples=50)
@given(layouts(), st.sampled_from([1, 1 << 20]))
def test_what_ranks_write_tiles_the_tensor(
    drawn: tuple[tuple[int, ...], Mesh, tuple[Placement, ...]], itemsize: int
) -> None:
    shape, mesh, placements = drawn
    counts = torch.zeros(shape, dtype=torch.int64)
    found = []
    for coordinate in itertools.product(*map(range, mesh)):
        for box in Layout(placements, mesh, coordinate).written("w", shape, itemsize):
            place = tuple(slice(start, start + length) for start, length in zip(box.offset, box.shape, strict=True))
            counts[place] += 1
            found.append((box.offset, box.shape))
    assert (counts == 1).all()
    assert tiling_fault(shape, found) is None


@settings(max_examples=50)
@given(st.integers(0, 40), st.integers(1, 4), st.integers(1, 4))
def test_fsdp_over_tensor_parallelism_is_read_right_or_seen_to_be_uneven(rows: int, outer: int, inner: int) -> None:
    """FSDP splits what tensor parallelism left, which a strided shard does not always say where rows are uneven."""
    placements, whole = (_StridedShard(0, split_factor=inner), Shard(0)), torch.arange(rows)
    real, told = [], []
    for coordinate in itertools.product(range(outer), range(inner)):
        kept = split(whole, (Shard(0),), (inner,), coordinate[1:])
        real.append(split(kept, (Shard(0),), (outer,), coordinate[:1]).tolist())
        boxes = Layout(placements, (outer, inner), coordinate).held((rows,)) if rows else []
        told.append([row for box in boxes for row in range(box.offset[0], box.offset[0] + box.shape[0])])
    assert real == told or [*map(len, real)] != [*map(len, told)]
    assert real == told or rows % (outer * inner)


def test_partial_sums_are_refused() -> None:
    with pytest.raises(CheckpointError, match="w: is a partial sum on each rank"):
        Layout((Partial(),), (2,), (0,)).check("w")


def _lite_placements(name: str, shape: tuple[int, ...]) -> tuple[Placement, Placement]:
    """Experts are split over both dimensions of the mesh; of the rest, large ones over the first."""
    if ".mlp.experts." in name:
        return Shard(len(shape) - 1), Shard(0)
    return (Replicate(), Replicate()) if math.prod(shape) < 1 << 20 else (Shard(shape.index(max(shape))), Replicate())


def test_sixteen_billion_parameters_are_written_in_equal_parts_and_never_whole() -> None:
    """V2-Lite with its AdamW state on 8 data x 8 expert ranks: experts split by both, all else by FSDP or copied."""
    mesh, written = (8, 8), Counter[tuple[int, ...]]()
    shapes, total, largest = parameter_shapes(preset("deepseek-v2-lite")), 0, 0
    for name, shape in shapes.items():
        placements = _lite_placements(name, shape)
        boxes = []
        for coordinate in itertools.product(range(8), range(8)):
            for box in Layout(placements, mesh, coordinate).written(name, shape, 4):
                nbytes = 3 * 4 * math.prod(box.shape)
                written[coordinate] += nbytes
                largest = max(largest, nbytes // 3)
                boxes.append((box.offset, box.shape))
        assert tiling_fault(shape, boxes) is None
        total += 3 * 4 * math.prod(shape)
    assert total > 15e9 * 12
    assert sum(written.values()) == total
    assert max(written.values()) < 1.02 * total / 64
    assert largest < 200 << 20


@pytest.mark.slow
def test_sixteen_billion_parameters_are_planned_on_the_meta_device() -> None:
    """The planners of 64 ranks agree on a plan by shapes alone, and its index is read again."""
    mesh, planners = (8, 8), []
    shapes = parameter_shapes(preset("deepseek-v2-lite"))
    for coordinate in itertools.product(range(8), range(8)):
        pieces = [
            Piece(f"model/{name}", shape, box.offset, torch.empty(box.shape, device="meta"))
            for name, shape in shapes.items()
            for box in Layout(_lite_placements(name, shape), mesh, coordinate).written(name, shape, 4)
        ]
        planners.append(PieceSavePlanner(partial(_prepared, pieces)))
        planners[-1].set_up_planner({}, None, coordinate == (0, 0))
    plans, metadata = planners[0].create_global_plan([planner.create_local_plan() for planner in planners])
    pairs = zip(planners, plans, strict=True)
    nbytes = [sum(planner.lookup_object(item.index).nbytes for item in plan.items) for planner, plan in pairs]
    assert sum(nbytes) == 4 * sum(map(math.prod, shapes.values()))
    assert max(nbytes) < 1.02 * sum(nbytes) / 64
    assert metadata.state_dict_metadata.keys() == {f"model/{name}" for name in shapes}


def _prepared(pieces: list[Piece]) -> tuple[list[Piece], dict[str, str]]:
    return pieces, {}
