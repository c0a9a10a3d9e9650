"""The tensors of a sharded stem, each assembled from its pieces when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from torch import Tensor

from fathom.checkpoint.allocation import empty_cpu_tensor
from fathom.checkpoint.damaged import damaged
from fathom.checkpoint.sharded.index import Index, StoredPiece, piece_name, read_index
from fathom.checkpoint.tensorfile import TYPES, TensorFile
from fathom.checkpoint.weights import StoredTensor


@dataclass(frozen=True, slots=True)
class ShardedTensors:
    """Tensors in pieces, of which only the index was read; a file's header is read when a piece of it is asked for."""

    directory: Path
    index: Index = field(repr=False)
    _files: dict[str, TensorFile] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: Path, known: Mapping[str, object]) -> Self:
        """Read an index; ``CheckpointError`` where anything in it is wrong. ``known`` are the manifest's files."""
        return cls(path.parent, read_index(path, known.keys()))

    @property
    def entries(self) -> Mapping[str, StoredTensor]:
        """Every tensor, whole, by name."""
        return self.index.entries

    def read(self, name: str) -> Tensor:
        """Assemble one tensor in memory of its own."""
        entry, pieces = self.entries[name], self.index.pieces[name]
        files = [self._holding(name, piece) for piece in pieces]  # before memory is taken for what they promise
        tensor = empty_cpu_tensor(entry.shape, TYPES[entry.kind])
        for file, piece in zip(files, pieces, strict=True):
            destination = narrowed(tensor, piece.offset, piece.shape)
            file.read_region(piece_name(name, piece.offset), (0,) * len(piece.shape), destination)
        return tensor

    def read_piece(self, name: str, piece: StoredPiece, offset: Sequence[int], destination: Tensor) -> None:
        """Fill ``destination`` with the box of its shape that begins at ``offset`` of a piece."""
        self._holding(name, piece).read_region(piece_name(name, piece.offset), offset, destination)

    def _holding(self, name: str, piece: StoredPiece) -> TensorFile:
        """Return the file of a piece, whose header says the same of it as the index."""
        key, kind = piece_name(name, piece.offset), self.entries[name].kind
        file = self._file(piece.file)
        entry = file.entries.get(key)
        if entry is None or (entry.shape, entry.kind) != (piece.shape, kind):
            found = "is missing" if entry is None else f"is {entry.kind} {entry.shape}"
            raise damaged(file.path, f"{key} {found} where its index promises {kind} {piece.shape}")
        return file

    def _file(self, name: str) -> TensorFile:
        if name not in self._files:
            self._files[name] = TensorFile.open(self.directory / name)
        return self._files[name]


StoredTensors = TensorFile | ShardedTensors
"""The tensors of a stem, in one file or in pieces in many: ``entries`` are described, and ``read`` one by one."""


@dataclass(frozen=True, slots=True)
class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name that are read anew each time they are asked for; ``aliases`` are further names of some."""

    stored: StoredTensors
    aliases: Mapping[str, str]
    device: str

    def __getitem__(self, name: str) -> Tensor:
        name = self.aliases.get(name, name)
        if name not in self.stored.entries:
            raise KeyError(name)
        return self.stored.read(name).to(self.device)

    def __iter__(self) -> Iterator[str]:
        return iter({**self.stored.entries, **self.aliases})

    def __len__(self) -> int:
        return len(self.stored.entries.keys() | self.aliases.keys())


def narrowed(tensor: Tensor, offset: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return a box of a tensor as a view."""
    for dim, (start, length) in enumerate(zip(offset, shape, strict=True)):
        tensor = tensor.narrow(dim, start, length)
    return tensor
