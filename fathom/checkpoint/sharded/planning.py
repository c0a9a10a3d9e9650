"""Planners for torch.distributed.checkpoint that see tensors as pieces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from fathom.checkpoint.sharded.index import PlacedBox, tiling_fault
from fathom.checkpoint.sharded.pieces import Piece, held_pieces
from fathom.checkpoint.sharded.tensors import narrowed
from fathom.errors import CheckpointError
from fathom.logs import listed

_Place = tuple[str, tuple[int, ...]]


class PieceSavePlanner(DefaultSavePlanner):
    """Plans the writing of pieces; ``prepare`` returns them and the aliases, and what it raises all ranks raise."""

    def __init__(self, prepare: Callable[[], tuple[list[Piece], dict[str, str]]]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._prepare = prepare
        self._memory: dict[_Place, Tensor] = {}

    def create_local_plan(self) -> SavePlan:
        """Offer every piece."""
        pieces, aliases = self._prepare()
        self._memory = {(piece.key, piece.offset): piece.memory for piece in pieces}
        self.plan = SavePlan([_write_item(piece) for piece in pieces], planner_data=aliases)
        return self.plan

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """Give each piece one writer; all pieces together must tile every tensor."""
        _check_agreement(all_plans)
        aliases = {name: first for plan in all_plans for name, first in plan.planner_data.items()}
        try:
            plans, metadata = super().create_global_plan(all_plans)
        except ValueError as error:
            raise CheckpointError(f"the ranks' pieces do not make whole tensors: {error}; give all of each") from None
        for key, described in metadata.state_dict_metadata.items():
            chunks = described.chunks  # type: ignore[union-attr]
            fault = tiling_fault(described.size, [(tuple(each.offsets), tuple(each.sizes)) for each in chunks])  # type: ignore[union-attr]
            if fault is not None:
                raise CheckpointError(f"{key}: {fault}; give all pieces of a tensor, on the ranks of one mesh")
        kept = {name: first for name, first in aliases.items() if name not in metadata.state_dict_metadata}
        return plans, dataclasses.replace(metadata, planner_data=kept)

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """Return a piece's memory."""
        return self._memory[index.fqn, tuple(index.offset or ())]


class PieceLoadPlanner(LoadPlanner):
    """Plans the reading of what this rank holds of its tensors, from ``path``.

    All ranks together must ask for every tensor of the stems they ask for, unless ``partial``.
    """

    def __init__(self, path: Path, *, partial: bool) -> None:
        self._path, self._partial = path, partial
        self._memory: dict[_Place, Tensor] = {}
        self._wanted: Mapping[str, Tensor] = {}
        self._stored: Mapping[str, Any] = {}

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Take the destinations."""
        self._wanted = state_dict
        self._stored = {} if metadata is None else metadata.state_dict_metadata

    def create_local_plan(self) -> LoadPlan:
        """Ask for the parts of stored pieces that this rank's pieces are made of."""
        self._check_wanted()
        items: list[ReadItem] = []
        for key, tensor in self._wanted.items():
            pieces = list(held_pieces(key, tensor))
            self._memory |= {(key, piece.offset): piece.memory for piece in pieces}
            chunks = [_chunk(piece) for piece in pieces if piece.memory.numel()]
            items += create_read_items_for_chunk_list(key, self._stored[key], chunks)
        return LoadPlan(items, planner_data=list(self._wanted))

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """Leave every rank's plan as it is, once all ranks' tensors are all there are."""
        asked = {key for plan in global_plan for key in plan.planner_data}
        stems = {key.partition("/")[0] for key in asked}
        left = sorted(key for key in self._stored if key not in asked and key.partition("/")[0] in stems)
        if left and not self._partial:
            self._refuse([f"{key} is unexpected" for key in left])
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        """Return it."""
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        """Nothing but tensors is stored."""
        raise CheckpointError(f"{self._path}: {read_item.dest_index.fqn} is no tensor; use another checkpoint")

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        """Return the memory to be filled."""
        index = read_item.dest_index
        memory = self._memory[index.fqn, tuple(index.offset or ())]
        return narrowed(memory, read_item.dest_offsets, read_item.lengths)

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Leave it: it was filled in place."""

    def _check_wanted(self) -> None:
        problems = [f"{key} is missing" for key in self._wanted if key not in self._stored]
        for key, tensor in self._wanted.items():
            if key in self._stored and self._stored[key].size != tensor.shape:
                found = tuple(self._stored[key].size)
                problems.append(f"{key} has shape {found} instead of {tuple(tensor.shape)}")
        if problems:
            self._refuse(problems)

    def _refuse(self, problems: Sequence[str]) -> None:
        raise CheckpointError(f"{self._path}: {listed(problems)}; use the checkpoint of this very model")


def storage_metadata(dtype: torch.dtype, shape: Sequence[int], boxes: Sequence[PlacedBox]) -> TensorStorageMetadata:
    """Describe a stored tensor and its pieces, each an offset and a shape."""
    chunks = [ChunkStorageMetadata(torch.Size(offset), torch.Size(lengths)) for offset, lengths in boxes]
    return TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(shape), chunks)


def _chunk(piece: Piece) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(piece.offset), piece.memory.shape)


def _write_item(piece: Piece) -> WriteItem:
    data = TensorWriteData(
        chunk=_chunk(piece), properties=TensorProperties(dtype=piece.memory.dtype), size=torch.Size(piece.shape)
    )
    return WriteItem(MetadataIndex(piece.key, torch.Size(piece.offset)), WriteItemType.SHARD, tensor_data=data)


def _check_agreement(plans: Sequence[SavePlan]) -> None:
    """Ranks may not mean different tensors by one name."""
    first: dict[str, tuple[int, Any, Any]] = {}
    for rank, plan in enumerate(plans):
        for item in plan.items:
            assert item.tensor_data is not None
            dtype, size = item.tensor_data.properties.dtype, item.tensor_data.size
            known, *known_as = first.setdefault(item.index.fqn, (rank, dtype, size))
            if known_as != [dtype, size]:
                raise CheckpointError(
                    f"{item.index.fqn}: is {known_as[0]} of {tuple(known_as[1])} on rank {known} and {dtype} of "
                    f"{tuple(size)} on rank {rank}; give every tensor a name of its own"
                )
