"""Reading files straight out of a package archive, without unpacking it to disk."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from fathom.errors import SourceError

MAX_MEMBER_BYTES = 268_435_456


def read_members(
    archive: Path, patterns: Sequence[str], exclude: Sequence[str] = (), *, max_bytes: int = MAX_MEMBER_BYTES
) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every ordinary file that matches, sorted by name.

    Patterns are matched against the whole path inside the archive; ``*`` matches slashes too. Every pattern of
    ``patterns`` must match a file. Links are passed over. An absolute or climbing path anywhere in the archive, a
    member above ``max_bytes`` and a damaged archive raise ``SourceError``.
    """
    try:
        if zipfile.is_zipfile(archive):
            yield from _zip_members(archive, patterns, exclude, max_bytes)
        else:
            yield from _tar_members(archive, patterns, exclude, max_bytes)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise SourceError(f"{archive}: damaged archive ({error}); delete it and fetch it again") from None
    except OSError as error:
        raise SourceError(f"{archive}: cannot be read ({error}); delete it and fetch it again") from None


def _zip_members(
    archive: Path, patterns: Sequence[str], exclude: Sequence[str], max_bytes: int
) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as opened:
        sizes = {info.filename: info.file_size for info in opened.infolist() if not info.is_dir()}
        for name in _select(archive, sizes, patterns, exclude, max_bytes):
            with opened.open(name) as file:
                yield name, _bounded(archive, name, file.read(max_bytes + 1), max_bytes)


def _tar_members(
    archive: Path, patterns: Sequence[str], exclude: Sequence[str], max_bytes: int
) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive, "r:*") as opened:
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
