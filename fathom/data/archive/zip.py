"""Members of zip archives, wheels among them."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator
from io import FileIO

from fathom.data.archive.selection import Selection
from fathom.errors import SourceError

MAX_DIRECTORY_BYTES = 16_777_216
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def zip_members(selection: Selection) -> Iterator[tuple[str, bytes]]:
    """Yield the chosen members of a zip archive, sorted by name."""
    with _Bounded(selection) as file, zipfile.ZipFile(file) as opened:
        file.directory_is_read()
        chosen = {}
        for info in opened.infolist():
            if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16) and _is_wanted(selection, info):
                chosen[info.filename] = info
        selection.finish()
        for name, info in sorted(chosen.items()):
            with opened.open(info) as member:
                yield name, member.read(info.file_size + 1)


def _is_wanted(selection: Selection, info: zipfile.ZipInfo) -> bool:
    if not selection.wants(info.filename, info.file_size):
        return False
    if info.compress_type not in _METHODS or info.flag_bits & 1:
        raise SourceError(
            f"{selection.archive}: {info.filename!r} is encrypted or packed by method {info.compress_type}, "
            "as no package is; do not use this package"
        )
    return True


class _Bounded(FileIO):
    """A file of whose beginning and directory no more is read than a sound archive needs."""

    def __init__(self, selection: Selection) -> None:
        super().__init__(selection.archive, "rb")
        self._selection, self._left = selection, MAX_DIRECTORY_BYTES

    def directory_is_read(self) -> None:
        """End the bound."""
        self._left = -1

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to ``size`` bytes; before the directory is read, a large ``size`` raises ``SourceError``."""
        wanted = -1 if size is None else size
        if self._left >= 0:
            remaining = self._selection.archive.stat().st_size - self.tell()
            self._left -= remaining if wanted < 0 else min(wanted, max(remaining, 0))
            if self._left < 0:
                raise SourceError(
                    f"{self._selection.archive}: its directory has over {MAX_DIRECTORY_BYTES} bytes; "
                    "do not use this package"
                )
        return super().read(wanted)
