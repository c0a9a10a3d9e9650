"""A GGUF file: its metadata, its tensors' shapes and places, and its tensors one by one.

X blocks, Y elements of one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fathom.checkpoint.allocation import empty_cpu_tensor
from fathom.checkpoint.gguf.blocks import BLOCK_FORMATS, FLOATS, TYPE_SIZES, dequantize_into
from fathom.checkpoint.gguf.header import Header, RawEntry, read_header
from fathom.errors import CheckpointError, explain_os_error
from fathom.extras import install_extra
from fathom.files import open_regular

ALIGNMENT = "general.alignment"
DEFAULT_ALIGNMENT = 32
"""Bytes that every tensor's start is a multiple of, where the metadata says nothing else."""
_UINT32 = 4
_CHUNK_BYTES = 4 * 2**20


class ReadTensor(Protocol):
    """Reads a tensor by its name: its numbers, or its ``blocks`` as uint8, (..., rows, bytes of a row)."""

    def __call__(self, name: str, *, blocks: bool = False) -> Tensor:
        """Return the tensor."""
        ...


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of the file: shape with rows first as in torch, ggml's name of its type, and where its bytes lie."""

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Container:
    """A file whose header was read and checked, but none of its tensors."""

    path: Path
    version: int
    size: int
    metadata: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, TensorInfo] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Container:
        """Read the header.

        Raises:
            CheckpointError: the file is missing, damaged or hostile; the message names the field.
        """
        try:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
                header = read_header(file, size, path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read, {explain_os_error(error)}") from None
        return cls(path, header.version, size, header.metadata, _tensors(header, size, path))

    def read(self, name: str) -> Tensor:
        """Return one tensor: F32, F16 and BF16 as they are stored, quantized kinds as float32.

        Beside the tensor itself a few megabytes are used.

        Raises:
            CheckpointError: the kind is one that Fathom does not read, or the file shrank since it was opened.
        """
        with self.reading() as read:
            return read(name)

    @contextmanager
    def reading(self) -> Iterator[ReadTensor]:
        """Open the file once to read many tensors, as ``read`` does or as blocks."""
        try:
            file = self.path.open("rb", buffering=0)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read, {explain_os_error(error)}") from None
        with file:

            def read(name: str, *, blocks: bool = False) -> Tensor:
                info = self.tensors[name]
                return self._read_blocks(file, info) if blocks else self._read(file, info)

            yield read

    def _read_blocks(self, file: FileIO, info: TensorInfo) -> Tensor:
        file.seek(info.offset)
        raw = empty_cpu_tensor((info.nbytes,), torch.uint8)
        self._fill(file, raw, info.name)
        return raw.view(*info.shape[:-1], -1)

    def _read(self, file: FileIO, info: TensorInfo) -> Tensor:
        file.seek(info.offset)
        if info.kind in FLOATS:
            tensor = empty_cpu_tensor(info.shape, FLOATS[info.kind])
            self._fill(file, tensor.view(-1).view(torch.uint8), info.name)
            return tensor
        if info.kind not in BLOCK_FORMATS:
            known = ", ".join([*FLOATS, *BLOCK_FORMATS])
            raise CheckpointError(
                f"{self.path}: {info.name} is of type {info.kind}, which Fathom does not read; use one of {known}"
            )
        block = BLOCK_FORMATS[info.kind]
        tensor = empty_cpu_tensor(info.shape, torch.float32)
        flat_XY = tensor.view(-1, block.elements)
        per_chunk = max(1, _CHUNK_BYTES // block.nbytes)
        buffer = torch.empty(min(per_chunk * block.nbytes, info.nbytes), dtype=torch.uint8)
        for start in range(0, len(flat_XY), per_chunk):
            part_XY = flat_XY[start : start + per_chunk]
            raw = buffer[: len(part_XY) * block.nbytes]
            self._fill(file, raw, info.name)
            dequantize_into(raw, info.kind, part_XY)
        return tensor

    def _fill(self, file: FileIO, raw: Tensor, name: str) -> None:
        view = raw.numpy().data
        done = 0
        while done < len(view):
            try:
                count = file.readinto(view[done:])
            except OSError as error:
                raise CheckpointError(f"{self.path}: {name} cannot be read, {explain_os_error(error)}") from None
            if not count:
                raise CheckpointError(f"{self.path}: {name} ends early; the file changed while it was read, try again")
            done += count


def _tensors(header: Header, size: int, path: Path) -> dict[str, TensorInfo]:
    alignment = _alignment(header, path)
    start = -(-header.end // alignment) * alignment
    sizes = TYPE_SIZES if all(entry.kind in TYPE_SIZES for entry in header.entries) else type_sizes()
    tensors = {}
    for entry in header.entries:
        if entry.kind not in sizes:
            raise CheckpointError(
                f"{path}: {entry.name}: type {entry.kind} is not known; use a file of ggml's present types"
            )
        tensors[entry.name] = _place(entry, sizes[entry.kind], start, alignment, size, path)
    _check_overlap(tensors, path)
    return tensors


def _alignment(header: Header, path: Path) -> int:
    given = header.metadata.get(ALIGNMENT, DEFAULT_ALIGNMENT)
    whole = header.types.get(ALIGNMENT, _UINT32) == _UINT32
    if not whole or given < 1 or given & (given - 1):
        raise CheckpointError(f"{path}: {ALIGNMENT} is {given}; it must be a power of two as uint32")
    return int(given)


def _place(
    entry: RawEntry, kind: tuple[str, int, int], start: int, alignment: int, size: int, path: Path
) -> TensorInfo:
    name, elements, nbytes = kind
    if entry.dimensions[0] % elements:
        raise CheckpointError(
            f"{path}: {entry.name}: rows of {entry.dimensions[0]} are not whole blocks of {elements} ({name}); "
            "the file is damaged, download it again"
        )
    length = math.prod(entry.dimensions) // elements * nbytes
    offset = start + entry.offset
    if entry.offset % alignment:
        raise CheckpointError(
            f"{path}: {entry.name}: offset {entry.offset} is no multiple of {alignment}; "
            "the file is damaged, download it again"
        )
    if offset + length > size:
        raise CheckpointError(
            f"{path}: {entry.name}: ends at byte {offset + length} of a file of {size}; "
            "the file is cut short, download it again"
        )
    return TensorInfo(entry.name, tuple(reversed(entry.dimensions)), name, offset, length)


def _check_overlap(tensors: Mapping[str, TensorInfo], path: Path) -> None:
    end, last = 0, ""
    for info in sorted(tensors.values(), key=lambda info: info.offset):
        if info.offset < end:
            raise CheckpointError(f"{path}: {info.name}: overlaps {last}; the file is damaged, download it again")
        end, last = info.offset + info.nbytes, info.name


def type_sizes() -> Mapping[int, tuple[str, int, int]]:
    """Return all of ggml's types by number: name, elements in a block, bytes of a block.

    Raises:
        CheckpointError: the gguf library is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise CheckpointError(f"gguf: the library is not installed; {install_extra('gguf')}") from None
    return {int(kind): (kind.name, elements, nbytes) for kind, (elements, nbytes) in gguf.GGML_QUANT_SIZES.items()}
