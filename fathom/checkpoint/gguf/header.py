"""The header of a GGUF file: counts, metadata and tensor entries, each checked against the file before it is used.

Nothing the file says is allocated, looped over or multiplied out before the bytes for it are known to be there, so a
damaged or hostile file costs no more than reading it does.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from fathom.errors import CheckpointError
from fathom.files import pointer_remedy

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 128 * 2**20
MAX_TENSORS = 2**18
MAX_KEY_BYTES = 65535
MAX_NAME_BYTES = 64
MAX_DIMENSIONS = 4
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
"""struct's letters by GGUF's numbers of value types."""
_LEAST_FIELD = 13  # the length of an empty key, a type, and a value of one byte
_LEAST_ENTRY = 33  # the length of a name of one byte, one dimension, a type and an offset
_FIRST_READ = 2**20
_U64 = struct.Struct("<Q")
_REMEDY = "the file is damaged or not GGUF; download it again"


@dataclass(frozen=True, slots=True)
class RawEntry:
    """A tensor entry as the header spells it: dimensions fastest first, the type's number, the offset in the data."""

    name: str
    dimensions: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the tensors; ``types`` holds the value type numbers of the metadata, ``end`` where it ends."""

    version: int
    metadata: dict[str, Any]
    types: dict[str, int]
    entries: tuple[RawEntry, ...]
    end: int


def read_header(file: BinaryIO, size: int, path: Path) -> Header:
    """Read the header of an opened file of ``size`` bytes; memory stays within a few times the header's own bytes.

    Raises:
        CheckpointError: it is no GGUF of version 2 or 3 in little-endian order, or something in it cannot be true.
    """
    if not size:
        raise CheckpointError(f"{path}: is empty; {_REMEDY}")
    reader = _Reader(file, size, path)
    if reader.take(4, "magic") != MAGIC:
        pointer = pointer_remedy(reader.beginning(64))
        if pointer is not None:
            raise CheckpointError(f"{path}: {pointer}")
        reader.refuse("magic", "is not GGUF")
    version = reader.number("I", "version")
    if version & 0xFFFF == 0:
        raise CheckpointError(f"{path}: version {version:#x} is big-endian; convert the file to little-endian first")
    if version not in VERSIONS:
        raise CheckpointError(f"{path}: version {version} is not supported; use a file of version 2 or 3")
    tensor_count = reader.count("tensor_count", _LEAST_ENTRY)
    if tensor_count > MAX_TENSORS:
        reader.refuse("tensor_count", f"is {tensor_count}, more than {MAX_TENSORS}")
    field_count = reader.count("metadata_kv_count", _LEAST_FIELD)
    metadata: dict[str, Any] = {}
    types: dict[str, int] = {}
    for index in range(field_count):
        key = reader.name(f"metadata[{index}].key", MAX_KEY_BYTES)
        if key in metadata:
            reader.refuse(f"metadata[{index}].key", f"{key!r} stands there twice")
        types[key] = reader.number("I", key)
        metadata[key] = reader.value(types[key], key)
    entries: dict[str, RawEntry] = {}
    for index in range(tensor_count):
        entry = reader.entry(index)
        if entry.name in entries:
            reader.refuse(f"tensors[{index}].name", f"{entry.name!r} stands there twice")
        entries[entry.name] = entry
    return Header(version, metadata, types, tuple(entries.values()), reader.position)


class _Reader:
    """Reads little-endian values from the start of a file, through a buffer that grows as needed."""

    def __init__(self, file: BinaryIO, size: int, path: Path) -> None:
        self._file = file
        self._size = size
        self._path = path
        self._buffer = bytearray()
        self.position = 0

    def refuse(self, field: str, problem: str) -> NoReturn:
        raise CheckpointError(f"{self._path}: {field} {problem}; {_REMEDY}")

    def _need(self, end: int, field: str) -> None:
        """Make the buffer reach ``end``, which is checked against the file's size first."""
        if end <= len(self._buffer):
            return
        if end > self._size:
            self.refuse(field, f"ends at byte {end} of a file of {self._size}")
        if end > MAX_HEADER_BYTES:
            self.refuse(field, f"lies beyond {MAX_HEADER_BYTES} bytes of header")
        wanted = min(max(end, 2 * len(self._buffer), _FIRST_READ), self._size, MAX_HEADER_BYTES)
        self._buffer += self._file.read(wanted - len(self._buffer))
        if end > len(self._buffer):
            self.refuse(field, "cannot be read to its end")

    def take(self, length: int, field: str) -> bytes:
        start, end = self.position, self.position + length
        self._need(end, field)
        self.position = end
        return bytes(self._buffer[start:end])

    def beginning(self, length: int) -> bytes:
        """Return the file's first bytes, fewer where it has fewer."""
        return bytes(self._buffer[:length])

    def number(self, letter: str, field: str) -> Any:
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}"), field))[0]

    def count(self, field: str, least: int) -> int:
        """Read a count of things that take at least ``least`` bytes each."""
        number = int(self.number("Q", field))
        most = (min(self._size, MAX_HEADER_BYTES) - self.position) // least
        if number > most:
            self.refuse(field, f"is {number}, more than the {max(most, 0)} that fit in the file")
        return number

    def string(self, field: str, most: int = MAX_HEADER_BYTES) -> str:
        length = self.count(f"{field} length", 1)
        if length > most:
            self.refuse(field, f"has {length} bytes, more than {most}")
        try:
            return self.take(length, field).decode("utf-8")
        except UnicodeDecodeError:
            self.refuse(field, "is not UTF-8")

    def name(self, field: str, most: int) -> str:
        """Read a string that messages can name things by."""
        found = self.string(field, most)
        if not found or not found.isprintable():
            self.refuse(field, f"is {found!r}, not a name" if found else "is empty")
        return found

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.string(key)
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            self.refuse(key, f"has the unknown value type {kind}")
        value = self.number(_SCALARS[kind], key)
        return self._truths(key, [value])[0] if kind == _BOOL else value

    def _array(self, key: str) -> list[Any]:
        kind = self.number("I", key)
        if kind == _STRING:
            return self._strings(key)
        if kind == _ARRAY:
            raise CheckpointError(f"{self._path}: {key} is an array of arrays, which is not supported; remove the key")
        if kind not in _SCALARS:
            self.refuse(key, f"has elements of the unknown value type {kind}")
        width = struct.calcsize(f"<{_SCALARS[kind]}")
        length = self.count(f"{key} length", width)
        values = list(struct.unpack(f"<{length}{_SCALARS[kind]}", self.take(length * width, key)))
        return self._truths(key, values) if kind == _BOOL else values

    def _strings(self, key: str) -> list[str]:
        """Read many strings; the loop is the longest of any header, so it keeps to local names."""
        length = self.count(f"{key} length", _U64.size)
        values: list[str] = []
        append, unpack, width = values.append, _U64.unpack_from, _U64.size
        buffer, start = self._buffer, self.position
        try:
            for index in range(length):
                begin = start + width
                if begin > len(buffer):
                    self._need(begin, f"{key}[{index}]")
                start = begin + unpack(buffer, start)[0]
                if start > len(buffer):
                    self._need(start, f"{key}[{index}]")
                append(buffer[begin:start].decode())
        except UnicodeDecodeError:
            self.refuse(f"{key}[{len(values)}]", "is not UTF-8")
        self.position = start
        return values

    def _truths(self, key: str, values: list[int]) -> list[bool]:
        if any(value > 1 for value in values):
            self.refuse(key, "holds a boolean that is neither 0 nor 1")
        return [value == 1 for value in values]

    def entry(self, index: int) -> RawEntry:
        field = f"tensors[{index}]"
        name = self.name(f"{field}.name", MAX_NAME_BYTES)
        rank = self.number("I", f"{name}: n_dimensions")
        if not 1 <= rank <= MAX_DIMENSIONS:
            self.refuse(f"{name}: n_dimensions", f"is {rank}, not 1 to {MAX_DIMENSIONS}")
        dimensions = struct.unpack(f"<{rank}Q", self.take(8 * rank, f"{name}: dimensions"))
        if 0 in dimensions:
            self.refuse(f"{name}: dimensions", f"are {dimensions}, with a zero")
        kind, offset = struct.unpack("<IQ", self.take(12, f"{name}: offset"))
        return RawEntry(name, dimensions, kind, offset)
