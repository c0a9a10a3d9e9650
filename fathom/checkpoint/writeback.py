"""Writing large files at the disk's pace: small pieces from the processor's cache, and no heap of pages at the end."""

from __future__ import annotations

import os
import sys
from io import FileIO

_WRITE_BYTES = 1 << 18
"""Bytes of one write. The kernel gathers larger ones in larger pages, whose making costs several times the copying."""
_WRITEBACK_BYTES = 1 << 25
"""Bytes after which the disk is told to begin, so that forcing the file to disk at the end finds little left."""


class WritebackFile:
    """A new file that is written anywhere in it; ``OSError`` passes through."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._waiting: list[tuple[int, int]] = []
        self._bytes = 0

    def write(self, place: int, data: memoryview) -> None:
        """Write all of ``data`` at a place."""
        self._file.seek(place)
        while data:
            count = self._file.write(data[:_WRITE_BYTES]) or 0
            data = data[count:]
            self._note(place, count)
            place += count

    def _note(self, place: int, count: int) -> None:
        start, length = self._waiting[-1] if self._waiting else (place, 0)
        if start + length == place:
            self._waiting[-1:] = [(start, length + count)]
        else:
            self._waiting.append((place, count))
        self._bytes += count
        if self._bytes >= _WRITEBACK_BYTES:
            self._begin()

    def _begin(self) -> None:
        """Have the kernel write what waits, without waiting for it."""
        if sys.platform == "linux":  # where this advice begins writing pages that are dirty, and drops only clean ones
            for place, count in self._waiting:
                os.posix_fadvise(self._file.fileno(), place, count, os.POSIX_FADV_DONTNEED)
        self._waiting.clear()
        self._bytes = 0
