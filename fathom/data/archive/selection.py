"""Which members of an archive are read, and how much they may be together."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from fathom.data.records.compressed import ReadLimits
from fathom.errors import SourceError

MAX_MEMBERS = 200_000
MAX_NAME_CHARS = 1_024


class Selection:
    """Takes an archive's members one after another and keeps count; every refusal is a ``SourceError``."""

    def __init__(
        self, archive: Path, patterns: Sequence[str], exclude: Sequence[str], max_bytes: int, limits: ReadLimits
    ) -> None:
        self.archive, self._max_bytes, self._limits = archive, max_bytes, limits
        self._exclude, self._unmatched = exclude, dict.fromkeys(patterns)
        self._patterns = patterns
        self._members = self._bytes = 0
        self.most_bytes = min(
            limits.max_unpacked_bytes, max(limits.ratio_after_bytes, limits.max_ratio * archive.stat().st_size)
        )

    def wants(self, name: str, size: int) -> bool:
        """Whether a file of this name is read; ``size`` is what the archive says it has."""
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise SourceError(f"{self.archive}: has over {MAX_MEMBERS} members; do not use this package")
        if len(name) > MAX_NAME_CHARS:
            raise SourceError(f"{self.archive}: a path inside has {len(name)} characters; do not use this package")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or (len(name) > 1 and name[1] == ":"):
            raise SourceError(f"{self.archive}: unsafe path {name!r} inside; do not use this package")
        matching = [pattern for pattern in self._patterns if fnmatchcase(name, pattern)]
        for pattern in matching:
            self._unmatched.pop(pattern, None)
        if not matching or any(fnmatchcase(name, pattern) for pattern in self._exclude):
            return False
        if not 0 <= size <= self._max_bytes:
            raise SourceError(f"{self.archive}: {name!r} has {size} bytes, above {self._max_bytes}; exclude it")
        self._bytes += size
        if self._bytes > self.most_bytes:
            raise self.bomb()
        return True

    def finish(self) -> None:
        """Refuse an archive in which a pattern matched nothing."""
        for pattern in self._unmatched:
            raise SourceError(f"{self.archive}: no file matches {pattern!r}; correct files in the manifest")

    def bomb(self) -> SourceError:
        """Return what to raise for an archive that unpacks to too much."""
        return SourceError(
            f"{self.archive}: unpacks to over {self._limits.max_ratio} times its size (max_ratio), "
            "as a decompression bomb does; do not use this package"
        )
