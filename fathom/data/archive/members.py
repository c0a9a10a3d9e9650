"""The members of zip and tar archives whose names match patterns, sorted by name."""

from __future__ import annotations

import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from fathom.data.archive.selection import Selection
from fathom.data.archive.tar import tar_members
from fathom.data.archive.zip import zip_members
from fathom.data.records.compressed import DEFAULT_LIMITS, ReadLimits
from fathom.errors import SourceError, reason_of

MAX_MEMBER_BYTES = 268_435_456
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zipfile.LargeZipFile, lzma.LZMAError, zlib.error, struct.error, EOFError),
    *(RuntimeError, ValueError, OverflowError, LookupError, TypeError, AttributeError),  # of the libraries' parsers
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
    ``patterns`` must match a file. Links are passed over. Memory is bounded: one member, and what says where the
    others lie.

    Raises:
        SourceError: an absolute or climbing path anywhere in the archive, a member above ``max_bytes``, an archive
            that unpacks to absurdly more than its size (``limits``), absurdly many or long names, or damage.
        ResourceError: the disk is full.
    """
    try:
        selection = Selection(archive, patterns, exclude, max_bytes, limits)
        with archive.open("rb") as file:
            is_zip = zipfile.is_zipfile(file)
        yield from zip_members(selection) if is_zip else tar_members(selection)
    except OSError as error:
        raise SourceError(f"{archive}: cannot be read ({error}); delete it and fetch it again") from None
    except _DAMAGE as error:
        raise SourceError(f"{archive}: damaged archive ({reason_of(error)}); delete it and fetch it again") from None
