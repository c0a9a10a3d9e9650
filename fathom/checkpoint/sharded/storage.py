"""Storage for torch.distributed.checkpoint: each rank's pieces as safetensors, an index, and the store's manifest."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from fathom.checkpoint import store
from fathom.checkpoint.names import current_layout
from fathom.checkpoint.sharded.index import (
    Index,
    StoredPiece,
    index_text,
    piece_name,
    pieces_name,
    stored_tensor,
)
from fathom.checkpoint.sharded.pieces import key_of, split_key
from fathom.checkpoint.sharded.planning import storage_metadata
from fathom.checkpoint.sharded.tensors import ShardedTensors, StoredTensors
from fathom.checkpoint.tensorfile import TYPES, Entry
from fathom.checkpoint.weights import StoredTensor
from fathom.checkpoint.writer import CheckpointWriter
from fathom.errors import CheckpointError, ResourceError, explain_os_error
from fathom.files import sync


@dataclass(frozen=True, slots=True)
class PublishedParts:
    """What rank 0 adds to the tensors: ``documents`` by stem, ``files`` that are copied, and what it does at the end.

    ``published`` is called once the checkpoint is there, before any rank goes on.
    """

    documents: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[Path] = ()
    published: Callable[[Path], None] = lambda path: None


@dataclass(frozen=True, slots=True)
class _WrittenFile:
    """A file, and its size and SHA-256."""

    name: str
    entry: Mapping[str, Any]


_Place = tuple[str, tuple[int, ...]]
"""Key and offset of a piece."""


class SafetensorsWriter(StorageWriter):
    """Writes one rank's pieces into the folder that rank 0 makes, publishes and, if anything failed, removes.

    ``cleanup`` is left when the save is over, however it ends.
    """

    def __init__(self, directory: Path, rank: int, ranks: int, parts: PublishedParts, cleanup: ExitStack) -> None:
        self._directory, self._rank, self._ranks = directory, rank, ranks
        self._parts, self._cleanup = parts, cleanup
        self._draft: CheckpointWriter | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from save to save."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Everything was given when it was made."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Leave the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make the folder, and say to every rank where it is."""
        store.check_stems(self._parts.documents, self._directory)
        self._draft = self._cleanup.enter_context(store.atomic_checkpoint(self._directory))
        return [replace(plan, storage_data=str(self._draft.folder)) for plan in plans]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's pieces, one at a time, forced to disk, with their checksums."""
        folder = Path(plan.storage_data)
        try:
            if not folder.is_dir():
                problem = "the folder that rank 0 made is not there; give all ranks one shared file system"
                raise ResourceError(f"{self._directory}: not written, {problem}")
            results = self._write(folder, plan.items, planner)
        except OSError as error:
            raise ResourceError(f"{self._directory}: not written, {explain_os_error(error)}") from error
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write index, documents and manifest, and publish; the checkpoint is there once this returns."""
        assert self._draft is not None
        for stem, document in self._parts.documents.items():
            self._draft.document(stem, document)
        for path in self._parts.files:
            self._draft.copy(path)
        places = {_place(result.index): result.storage_data for each in results for result in each}
        aliases = [(*split_key(key), split_key(first)[1]) for key, first in metadata.planner_data.items()]
        for stem, index in _indexes(metadata, places).items():
            names = {piece.file for pieces in index.pieces.values() for piece in pieces}
            entries = {file.name: file.entry for file in places.values() if file.name in names}
            same = {name: first for of, name, first in aliases if of == stem}
            self._draft.sharded(stem, index_text(index), same, entries)
        self._cleanup.pop_all().close()
        self._parts.published(self._directory)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Checkpoints have no identities here."""
        return False

    def _write(self, folder: Path, items: Iterable[WriteItem], planner: SavePlanner) -> list[WriteResult]:
        by_stem: dict[str, list[WriteItem]] = defaultdict(list)
        for item in items:
            by_stem[split_key(item.index.fqn)[0]].append(item)
        draft, results = CheckpointWriter(folder), []
        for stem, chosen in by_stem.items():
            file = pieces_name(stem, self._rank, self._ranks)
            draft.stream(file, [_entry(item) for item in chosen], ((_name(i), _data(planner, i)) for i in chosen))
            name = f"{file}.safetensors"
            sync(folder / name)
            written = _WrittenFile(name, draft.files[name])
            results += [WriteResult(item.index, 0, written) for item in chosen]
        return results


class SafetensorsReader(StorageReader):
    """Reads what a rank needs of the tensors of some stems, in pieces or in one file."""

    def __init__(self, opened: store.Checkpoint, stems: Iterable[str]) -> None:
        self._opened, self._stems = opened, tuple(stems)
        self._stored: dict[str, StoredTensors] = {}
        self._failure: CheckpointError | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from load to load."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Describe all tensors; a fault is raised by ``set_up_storage_reader``, where all ranks learn of it."""
        found: dict[str, Any] = {}
        try:
            for stem in self._stems:
                stored = self._stored[stem] = self._opened.stored(stem)
                described = {name: _described(stored, name) for name in stored.entries}
                for name, first in self._opened.aliases(stem).items():
                    described[name] = described[first]
                found |= {key_of(stem, name): each for name, each in described.items()}
        except CheckpointError as error:
            self._failure = error
        except KeyError as error:
            self._failure = CheckpointError(
                f"{self._opened.directory}: has aliases of no tensor ({error}); use an earlier checkpoint"
            )
        return Metadata(found)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Raise what was wrong with the checkpoint."""
        if self._failure is not None:
            raise self._failure

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Leave the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Leave the plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the parts of pieces that the plan asks for, and no others, into where they belong."""
        for item in plan.items:
            destination = planner.resolve_tensor(item)
            self._read(item, destination)
            planner.commit_tensor(item, destination)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Checkpoints have no identities here."""
        return False

    def _read(self, item: ReadItem, destination: Tensor) -> None:
        stem, name = split_key(item.storage_index.fqn)
        stored = self._stored[stem]
        name = self._opened.aliases(stem).get(name, name)
        if isinstance(stored, ShardedTensors):
            piece = stored.index.pieces[name][item.storage_index.index or 0]
            stored.read_piece(name, piece, item.storage_offsets, destination)
        else:
            shape = _described(stored, name).size
            stored.read_region(name, item.storage_offsets, destination, shape)


def _described(stored: StoredTensors, name: str) -> Any:
    """Describe a tensor and the pieces it is stored in; one in a file of its own has the shape it has now."""
    entry = stored.entries[name]
    if isinstance(stored, ShardedTensors):
        pieces = [(piece.offset, piece.shape) for piece in stored.index.pieces[name]]
        return storage_metadata(TYPES[entry.kind], entry.shape, pieces)
    shape = tuple(current_layout(name, torch.empty(entry.shape, device="meta")).shape)
    return storage_metadata(TYPES[entry.kind], shape, [((0,) * len(shape), shape)])


def _indexes(metadata: Metadata, places: Mapping[_Place, _WrittenFile]) -> dict[str, Index]:
    """Return the index of each stem: where every piece of the plan was written."""
    entries: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
    pieces: dict[str, dict[str, tuple[StoredPiece, ...]]] = defaultdict(dict)
    for key, described in metadata.state_dict_metadata.items():
        assert isinstance(described, TensorStorageMetadata)
        stem, name = split_key(key)
        entries[stem][name] = stored_tensor(name, described.properties.dtype, described.size)
        boxes = [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in described.chunks]
        pieces[stem][name] = tuple(StoredPiece(places[key, offset].name, offset, shape) for offset, shape in boxes)
    return {stem: Index(entries[stem], pieces[stem]) for stem in entries}


def _place(index: MetadataIndex) -> _Place:
    return index.fqn, tuple(index.offset or ())


def _name(item: WriteItem) -> str:
    return piece_name(split_key(item.index.fqn)[1], item.index.offset or ())


def _entry(item: WriteItem) -> Entry:
    assert item.tensor_data is not None
    return _name(item), item.tensor_data.properties.dtype, tuple(item.tensor_data.chunk.sizes)


def _data(planner: SavePlanner, item: WriteItem) -> Tensor:
    found = planner.resolve_data(item)
    assert isinstance(found, Tensor)
    return found
