"""Members of tar archives, plain or compressed with gzip, bzip2 or xz, read from front to back once."""

from __future__ import annotations

import io
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO

from fathom.data.archive.selection import Selection
from fathom.data.records.compressed import MemberDecoder
from fathom.errors import ResourceError, SourceError, explain_os_error

MAX_HEADER_BYTES = 16_384
MAX_EXTENDED_BYTES = 67_108_864
_CHUNK = 65_536
_IN_MEMORY = 67_108_864
_LONG_NUMBER = re.compile(rb"[0-9]{200}")
_SUFFIXES: Mapping[bytes, str] = MappingProxyType({b"\x1f\x8b": ".gz", b"BZ": ".bz2", b"\xfd7": ".xz"})


def tar_members(selection: Selection) -> Iterator[tuple[str, bytes]]:
    """Yield the chosen members of a tar archive, sorted by name; they wait in memory, or in a file without a name."""
    places: dict[str, tuple[int, int]] = {}
    with selection.archive.open("rb") as file, tempfile.SpooledTemporaryFile(_IN_MEMORY) as store:
        content = _Forward(selection, _unpacked(selection.archive, file))
        with tarfile.open(fileobj=content, mode="r:") as opened:  # type: ignore[call-overload]
            while (member := _next(opened, content)) is not None:
                if not member.isfile() or not selection.wants(member.name, member.size):
                    continue
                if member.issparse():
                    raise SourceError(
                        f"{selection.archive}: {member.name!r} is a file with holes, as in no package; "
                        "do not use this package"
                    )
                places[member.name] = (_stored(selection.archive, content, member.size, store), member.size)
        selection.finish()
        for name, (start, size) in sorted(places.items()):
            store.seek(start)
            yield name, store.read(size)


def _next(opened: tarfile.TarFile, content: _Forward) -> tarfile.TarInfo | None:
    content.begin_header()
    member = opened.next()
    vars(opened)["members"].clear()  # else the library keeps every member
    vars(opened)["pax_headers"].clear()  # and copies what was said of all into each
    if member is not None and member.size < 0:
        raise tarfile.ReadError("a size below zero")
    content.end_header()
    return member


def _stored(archive: Path, content: _Forward, size: int, store: IO[bytes]) -> int:
    """Copy a member that begins here; return where it was put."""
    start = store.seek(0, io.SEEK_END)
    while size:
        data = content.read(min(size, _CHUNK))
        if not data:
            raise EOFError("unexpected end of data")
        size -= len(data)
        try:
            store.write(data)
        except OSError as error:
            raise ResourceError(f"{archive}: not unpacked, {explain_os_error(error)}") from None
    return start


def _unpacked(archive: Path, file: IO[bytes]) -> Iterator[bytes]:
    data = file.read(_CHUNK)
    suffix = _SUFFIXES.get(data[:2])
    decoder = None if suffix is None else MemberDecoder(suffix)
    while data:
        if decoder is None:
            yield data
        else:
            yield from decoder.chunks(data)
        data = file.read(_CHUNK)
    if decoder is not None and not decoder.complete:
        raise EOFError("compressed data ends too early")


class _Forward:
    """A stream that moves forward only, of bounded length, with headers of bounded size; what tarfile reads from."""

    def __init__(self, selection: Selection, chunks: Iterator[bytes]) -> None:
        self._selection, self._chunks = selection, chunks
        self._data, self._at, self._position = b"", 0, 0
        self._header: int | None = 0
        self._extended = 0

    def begin_header(self) -> None:
        """Count what is read from here on as one header."""
        self._header = 0

    def end_header(self) -> None:
        """What follows is content."""
        self._header = None

    def tell(self) -> int:
        return self._position

    def seek(self, target: int) -> None:
        if target < self._position:
            raise tarfile.ReadError("a member lies before the one read last")
        if target > self._selection.most_bytes:
            raise self._selection.bomb()
        while self._position < target and (found := self._take(target - self._position)):
            self._position += len(found)

    def read(self, size: int) -> bytes:
        if size < 0:
            raise tarfile.ReadError("a size below zero")
        if self._header is not None:
            self._count_header(size)
        parts = []
        while size and (found := self._take(size)):
            parts.append(found)
            size -= len(found)
            self._position += len(found)
        data = b"".join(parts)
        if self._header is not None and len(data) > tarfile.BLOCKSIZE and _LONG_NUMBER.search(data):
            raise tarfile.ReadError("a number of hundreds of digits")  # Python's own parser takes long over it
        return data

    def _count_header(self, size: int) -> None:
        self._header = (self._header or 0) + size
        self._extended += max(0, size - tarfile.BLOCKSIZE)
        if self._header > MAX_HEADER_BYTES or self._extended > MAX_EXTENDED_BYTES:
            raise SourceError(
                f"{self._selection.archive}: the header of a member has over {MAX_HEADER_BYTES} bytes; "
                "do not use this package"
            )

    def _take(self, most: int) -> bytes:
        """Return bytes that come next, up to ``most``; none at the end."""
        while self._at == len(self._data):
            self._data, self._at = next(self._chunks, b""), 0
            if not self._data:
                return b""
        found = self._data[self._at : self._at + most]
        self._at += len(found)
        if self._position + len(found) > self._selection.most_bytes:
            raise self._selection.bomb()
        return found
