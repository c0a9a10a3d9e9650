"""Reading files straight out of a package archive, without unpacking it to disk."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO, Any

from fathom.data.records.compressed import DEFAULT_LIMITS, ReadLimits
from fathom.errors import SourceError

MAX_MEMBER_BYTES = 268_435_456
_OPENERS: Mapping[bytes, Callable[[Path], Any]] = MappingProxyType(
    {b"\x1f\x8b": gzip.GzipFile, b"BZ": bz2.BZ2File, b"\xfd7": lzma.LZMAFile}
)


def read_members(
    archive: Path,
    patterns: Sequence[str],
    exclude: Sequence[str] = (),
    *,
    max_bytes: int = MAX_MEMBER_BYTES,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every ordinary file that matches, sorted by name.

    Patterns are matched against the whole path inside the archive; ``*`` matches slashes too. Every pattern of
    ``patterns`` must match a file. Links are passed over. An absolute or climbing path anywhere in the archive, a
    member above ``max_bytes``, an archive that unpacks to absurdly more than its size (``limits``) and a damaged one
    raise ``SourceError``.
    """
    try:
        if zipfile.is_zipfile(archive):
            yield from _zip_members(archive, patterns, exclude, max_bytes, limits)
        else:
            yield from _tar_members(archive, patterns, exclude, max_bytes, limits)
    except (
        *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, zlib.error),
        *(EOFError, NotImplementedError),
    ) as error:
        raise SourceError(f"{archive}: damaged archive ({error}); delete it and fetch it again") from None
    except OSError as error:
        raise SourceError(f"{archive}: cannot be read ({error}); delete it and fetch it again") from None


def _zip_members(
    archive: Path, patterns: Sequence[str], exclude: Sequence[str], max_bytes: int, limits: ReadLimits
) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as opened:
        sizes = {info.filename: info.file_size for info in opened.infolist() if not info.is_dir()}
        chosen = _select(archive, sizes, patterns, exclude, max_bytes)
        if sum(sizes[name] for name in chosen) > _most_bytes(archive, limits):
            raise _bomb(archive, limits)
        for name in chosen:
            with opened.open(name) as file:
                yield name, _bounded(archive, name, file.read(max_bytes + 1), max_bytes)


def _tar_members(
    archive: Path, patterns: Sequence[str], exclude: Sequence[str], max_bytes: int, limits: ReadLimits
) -> Iterator[tuple[str, bytes]]:
    with _unpacked(archive, limits) as content, tarfile.open(fileobj=content, mode="r:") as opened:
        members = {member.name: member for member in opened.getmembers() if member.isfile()}
        sizes = {name: member.size for name, member in members.items()}
        # in archive order, since going back in a compressed stream reads it from the start again
        chosen = set(_select(archive, sizes, patterns, exclude, max_bytes))
        contents: dict[str, bytes] = {}
        for name, member in members.items():
            file = opened.extractfile(member) if name in chosen else None
            if file is not None:
                contents[name] = _bounded(archive, name, file.read(max_bytes + 1), max_bytes)
    yield from sorted(contents.items())


def _unpacked(archive: Path, limits: ReadLimits) -> IO[bytes]:
    """Open a tar archive's content, unpacked up to what ``limits`` allow."""
    file = archive.open("rb")
    opener = _OPENERS.get(file.read(2))
    file.seek(0)
    if opener is None:
        return file
    file.close()
    return io.BufferedReader(_Limited(opener(archive), _most_bytes(archive, limits), _bomb(archive, limits)))


class _Limited(io.RawIOBase):
    """A stream that raises an error where it is read or moved beyond ``most`` bytes."""

    def __init__(self, stream: IO[bytes], most: int, error: SourceError) -> None:
        self._stream, self._most, self._error = stream, most, error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        if self._stream.tell() > self._most:
            raise self._error
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end is known after all is unpacked")
        target = offset + (self.tell() if whence == io.SEEK_CUR else 0)
        if target > self._most:
            raise self._error
        return self._stream.seek(target)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        self._stream.close()
        super().close()


def _most_bytes(archive: Path, limits: ReadLimits) -> int:
    """How much an archive may unpack to."""
    return min(limits.max_unpacked_bytes, max(limits.ratio_after_bytes, limits.max_ratio * archive.stat().st_size))


def _bomb(archive: Path, limits: ReadLimits) -> SourceError:
    return SourceError(
        f"{archive}: unpacks to over {limits.max_ratio} times its size (max_ratio), as a decompression bomb does; "
        "do not use this package"
    )


def _select(
    archive: Path, sizes: dict[str, int], patterns: Sequence[str], exclude: Sequence[str], max_bytes: int
) -> list[str]:
    for name in sizes:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or (len(name) > 1 and name[1] == ":"):
            raise SourceError(f"{archive}: unsafe path {name!r} inside; do not use this package")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in sizes):
            raise SourceError(f"{archive}: no file matches {pattern!r}; correct files in the manifest")
    chosen = sorted(
        name
        for name in sizes
        if any(fnmatchcase(name, p) for p in patterns) and not any(fnmatchcase(name, p) for p in exclude)
    )
    for name in chosen:
        if sizes[name] > max_bytes:
            raise SourceError(f"{archive}: {name} has {sizes[name]} bytes, above {max_bytes}; exclude it")
    return chosen


def _bounded(archive: Path, name: str, content: bytes, max_bytes: int) -> bytes:
    if len(content) > max_bytes:
        raise SourceError(f"{archive}: {name} unpacks to more than {max_bytes} bytes; exclude it")
    return content
