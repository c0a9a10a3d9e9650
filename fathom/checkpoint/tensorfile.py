"""Safetensors files, read and written one tensor at a time.

Reading uses plain reads into torch's own memory and no memory map, so that resident memory is what is held. A header
is used only after it was checked whole: its size, its JSON, each type and shape against its bytes, and that the
tensors tile the rest of the file without overlap or gap. Writing lays larger element types first, as other writers
do, so that every tensor is aligned to its type even where types are mixed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from fathom.checkpoint.allocation import empty_cpu_tensor
from fathom.checkpoint.regions import is_inside, read_region, tensor_bytes
from fathom.checkpoint.weights import StoredTensor
from fathom.checkpoint.writeback import WritebackFile
from fathom.errors import CheckpointError
from fathom.files import open_regular, pointer_remedy, publish_file

TYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E8M0": torch.float8_e8m0fnu,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)
"""The types read and written, by the names the format gives them."""
DTYPE_NAMES: Mapping[torch.dtype, str] = MappingProxyType({dtype: kind for kind, dtype in TYPES.items()})
"""The format's names, by type."""

_LARGEST_HEADER = 100_000_000
"""The limit of the format."""
MAX_TENSORS = 2**18
"""Of one file, by which reading a header takes some hundred megabytes at most; models have up to 140,000 in all."""
_MOST_COMMAS = 16 * MAX_TENSORS
_LONGEST_NAME = 512
_MOST_DIMENSIONS = 64
_LARGEST_SIZE = 2**63 - 1
_METADATA = "__metadata__"

Entry = tuple[str, torch.dtype, tuple[int, ...]]
"""Name, type and shape of a tensor to be written."""


class _Fault(ValueError):
    """A fault of a header."""


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A safetensors file whose header was read and checked, but none of its tensors; it holds no file open."""

    path: Path
    entries: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    places: Mapping[str, int] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> TensorFile:
        """Read the header; ``CheckpointError`` where anything in it is wrong."""
        try:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
                header, start = _header(path, file.read(8), size, file)
            metadata = _metadata(header.pop(_METADATA, {}))
            found = {name: _entry(name, given) for name, given in header.items()}
            _check_tiling(found, size - start)
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); download the file again") from error
        entries = {name: entry for name, (entry, _) in found.items()}
        return cls(path, entries, metadata, {name: start + place for name, (_, place) in found.items()})

    def read(self, name: str) -> Tensor:
        """Return one tensor in memory of its own; ``CheckpointError`` where the file has shrunk or is gone."""
        entry = self.entries[name]
        tensor = empty_cpu_tensor(entry.shape, TYPES[entry.kind])
        self.read_region(name, (0,) * len(entry.shape), tensor)
        return tensor

    def read_region(
        self, name: str, offset: Sequence[int], destination: Tensor, shape: Sequence[int] | None = None
    ) -> None:
        """Fill ``destination`` with the box of its shape that begins at ``offset`` of one tensor.

        ``shape`` is another shape of as many elements as which the tensor is seen. Errors are those of ``read``.
        """
        entry = self.entries[name]
        shape = entry.shape if shape is None else shape
        if math.prod(shape) != math.prod(entry.shape) or not is_inside(shape, offset, destination.shape):
            box = f"{tuple(destination.shape)} at {tuple(offset)}"
            raise CheckpointError(f"{self.path}: {name} of shape {entry.shape} has no {box}; ask for a part of it")
        try:
            with FileIO(self.path) as file:
                read_region(file, self.places[name], shape, TYPES[entry.kind], offset, destination)
        except EOFError:
            raise CheckpointError(
                f"{self.path}: cannot be read (it ends within {name}); download the file again"
            ) from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error}); download the file again") from error


class TensorFileWriter(AbstractContextManager["TensorFileWriter"]):
    """Writes a safetensors file; its tensors' names, types and shapes are known beforehand.

    Leaving the context raises ``CheckpointError`` where a tensor was not written. A file whose writing failed is
    removed. An ``OSError`` passes through: ``fathom.files`` explains it, and forces the file to disk.
    """

    def __init__(self, path: Path, entries: Sequence[Entry], *, metadata: Mapping[str, str] | None = None) -> None:
        self.path = path
        self._left = list(reversed(entries))
        header, self._places = _laid_out(entries, {"format": "pt"} if metadata is None else metadata)
        self._file = FileIO(path, "w")
        self._writeback = WritebackFile(self._file)
        self._writeback.write(0, memoryview(header))

    def write(self, name: str, tensor: Tensor) -> int:
        """Write the next tensor, in the order of the entries, and return its bytes.

        A contiguous tensor on the CPU is written from where it lies; any other is copied first.

        Raises:
            CheckpointError: it is not the next entry, or has another type or shape.
        """
        found = (name, tensor.dtype, tuple(tensor.shape))
        if not self._left or found != self._left[-1]:
            wanted = self._left[-1] if self._left else "nothing more"
            raise CheckpointError(f"{self.path}: {found} was given where {wanted} was due; give what was announced")
        self._left.pop()
        data = tensor_bytes(tensor.detach().cpu().contiguous())
        self._writeback.write(self._places[name], data)
        return len(data)

    @property
    def final_bytes(self) -> int:
        """Bytes from the start of the file that will not change any more."""
        return min((self._places[name] for name, _, _ in self._left), default=os.fstat(self._file.fileno()).st_size)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        whole = False
        try:
            if kind is None and self._left:
                raise CheckpointError(f"{self.path}: lacks {self._left[-1][0]}; write every tensor announced")
            whole = kind is None
        finally:
            self._file.close()
            if not whole:
                self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> None:
    """Publish a safetensors file of tensors on any device; ``ResourceError`` where the file system refuses."""
    entries = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    with publish_file(path) as partial, TensorFileWriter(partial, entries, metadata=metadata) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


def _header(path: Path, prefix: bytes, size: int, file: Any) -> tuple[dict[str, Any], int]:
    """Return the header and where the data starts."""
    length = int.from_bytes(prefix, "little")
    if prefix == b"version ":
        pointer = pointer_remedy(prefix + file.read(64))
        if pointer is not None:
            raise CheckpointError(f"{path}: {pointer}")
    if len(prefix) < 8 or length > size - 8:
        raise _Fault(f"its {size} bytes end within the header")
    if length > _LARGEST_HEADER:
        raise _Fault(f"a header of {length} bytes is beyond the format's {_LARGEST_HEADER}")
    data = file.read(length)
    if data.count(b"{") > MAX_TENSORS or data.count(b",") > _MOST_COMMAS or data.count(b"[") > 2 * MAX_TENSORS:
        raise _Fault(f"a header of {length} bytes describes more than {MAX_TENSORS} tensors")
    text = data.decode("utf-8")
    header = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    if not text.startswith("{") or not isinstance(header, dict):
        raise _Fault("its header is no JSON object")
    return header, 8 + length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _Fault(f"{name[:_LONGEST_NAME]!r} appears twice")
        found[name] = value
    return found


def _no_constant(word: str) -> Any:
    raise _Fault(f"{word} is no number of JSON")


def _metadata(given: Any) -> dict[str, str]:
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise _Fault(f"{_METADATA} is no table of words")
    return given


def _entry(name: str, given: Any) -> tuple[StoredTensor, int]:
    """Check one tensor's description; return it with its first byte, counted from the start of the data."""
    if not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
        raise _Fault(f"{name[:_LONGEST_NAME]!r} is no name of a tensor")
    if not isinstance(given, dict) or given.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Fault(f"{name}: needs dtype, shape and data_offsets, and nothing else")
    kind, shape, offsets = given["dtype"], given["shape"], given["data_offsets"]
    if not isinstance(kind, str) or kind not in TYPES:
        raise _Fault(f"{name}: is of type {kind!r:.60}, which is not read; it can be one of {', '.join(TYPES)}")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise _Fault(f"{name}: shape {shape!r:.60} and data_offsets {offsets!r:.60} must be lists of whole numbers")
    extent = math.prod(size for size in shape if size) * TYPES[kind].itemsize  # a zero hides what strides multiply
    if len(shape) > _MOST_DIMENSIONS or extent > _LARGEST_SIZE:
        raise _Fault(f"{name}: shape {shape!r:.60} is none of a tensor")
    nbytes = math.prod(shape) * TYPES[kind].itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise _Fault(f"{name}: {shape} of {kind} takes {nbytes} bytes, but data_offsets {offsets!r:.60} say otherwise")
    return StoredTensor(name, tuple(shape), kind, nbytes), offsets[0]


def _counts(given: Any) -> bool:
    return isinstance(given, list) and all(type(number) is int and number >= 0 for number in given)


def _check_tiling(found: Mapping[str, tuple[StoredTensor, int]], size: int) -> None:
    end = 0
    for entry, place in sorted(found.values(), key=lambda pair: (pair[1], pair[1] + pair[0].nbytes)):
        if place != end:
            raise _Fault(f"{entry.name}: starts at byte {place} of the data, where {end} is free")
        end += entry.nbytes
    if end != size:
        raise _Fault(f"its tensors take {end} bytes, but {size} follow the header")


def _laid_out(entries: Sequence[Entry], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """Return the header and the offset of each tensor in the file."""
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    places: dict[str, int] = {}
    end = 0
    for name, dtype, shape in sorted(entries, key=lambda entry: -entry[1].itemsize):
        if dtype not in DTYPE_NAMES:
            raise CheckpointError(f"{name}: is {dtype}, which is not written; convert it to one of {', '.join(TYPES)}")
        if name in header or name == _METADATA:
            raise CheckpointError(f"{name}: cannot be written twice; give every tensor a name of its own")
        places[name], end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [places[name], end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _LARGEST_HEADER:
        raise CheckpointError(f"a header of {len(text)} bytes is beyond the format's {_LARGEST_HEADER}; use more files")
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: start + place for name, place in places.items()}
