"""Large files are written whole, wherever their parts go, and writeback to disk starts meanwhile."""

from __future__ import annotations

import os
import sys
from io import FileIO
from pathlib import Path

import pytest

from fathom.checkpoint import writeback

CONTENT = bytes(range(256)) * 40


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_parts_lie_where_they_were_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...]) -> None:
    monkeypatch.setattr(writeback, "_WRITE_BYTES", 1000)
    monkeypatch.setattr(writeback, "_WRITEBACK_BYTES", 3000)
    advised: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, place, count, advice: advised.append((place, count)))
    part = len(CONTENT) // 4
    with FileIO(tmp_path / "file", "w") as file:
        whole = writeback.WritebackFile(file)
        for index in order:
            whole.write(index * part, memoryview(CONTENT)[index * part : (index + 1) * part])
    assert (tmp_path / "file").read_bytes() == CONTENT
    if sys.platform == "linux":
        result = [byte for place, count in advised for byte in range(place, place + count)]
        assert len(result) == len(set(result)) >= len(CONTENT) - 3000


def test_a_write_that_takes_less_goes_on(tmp_path: Path) -> None:
    class Slow(FileIO):
        def write(self, data: memoryview) -> int:  # type: ignore[override]
            return super().write(data[:100])

    with Slow(tmp_path / "file", "w") as file:
        writeback.WritebackFile(file).write(0, memoryview(CONTENT))
    assert (tmp_path / "file").read_bytes() == CONTENT
