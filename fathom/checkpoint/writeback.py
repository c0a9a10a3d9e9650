"""Writing large files in small pieces with early write-back, so that few dirty pages are left for the final fsync."""

from __future__ import annotations

import os
import sys
from io import FileIO

_WRITE_BYTES = 1 << 18
"""Bytes of one write. The kernel gathers larger ones in larger pages, whose making costs several times the copying."""
_WRITEBACK_BYTES = 1 << 25
"""Bytes after which write-back is started, so that the final fsync finds little left."""


class WritebackFile:
    """A new file with random-access writes; ``OSError`` passes through."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._pending: list[tuple[int, int]] = []
        self._bytes = 0

    def write(self, place: int, data: memoryview) -> None:
        """Write all of ``data`` at a place."""
        self._file.seek(place)
        while data:
            count = self._file.write(data[:_WRITE_BYTES]) or 0
            data = data[count:]
            self._add_pending(place, count)
            place += count

    def _add_pending(self, place: int, count: int) -> None:
        start, length = self._pending[-1] if self._pending else (place, 0)
        if start + length == place:
            self._pending[-1:] = [(start, length + count)]
        else:
            self._pending.append((place, count))
        self._bytes += count
        if self._bytes >= _WRITEBACK_BYTES:
            self._start_writeback()

    def _start_writeback(self) -> None:
        """Have the kernel write the pending ranges, without waiting for it."""
        if sys.platform == "linux":  # where this advice starts writing dirty pages, and drops only clean ones
            for place, count in self._pending:
                os.posix_fadvise(self._file.fileno(), place, count, os.POSIX_FADV_DONTNEED)
        self._pending.clear()
        self._bytes = 0
