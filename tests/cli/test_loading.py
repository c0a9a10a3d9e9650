"""What is shown of fetching and loading: nothing in a pipe but downloads, a bar that leaves no trace on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fathom.cli.load_progress import LoadProgress


def test_a_pipe_hears_of_a_download_once_and_of_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with LoadProgress("tiny") as report:
        report("fetch", 0, 98_362_432, "bytes")
        report("fetch", 98_362_432, 98_362_432, "bytes")
        report("load", 1, 2, "bytes")
    captured = capsys.readouterr()
    assert captured.err == "fetching tiny (98 MB) ...\n"
    assert captured.out == ""


def test_a_terminal_sees_each_stage_and_is_left_clean() -> None:
    screen = io.StringIO()
    with LoadProgress("tiny") as report:
        report.console = Console(file=screen, force_terminal=True, width=80)
        report("fetch", 0, 5_000_000, "bytes")
        report("load", 50, 100, "bytes")
        assert report.bar is not None
        assert report.bar.tasks[0].percentage == 50
    assert report.bar is None
    assert "fetch" in screen.getvalue()
    assert "(5 MB)" in screen.getvalue()
    assert "50/100 bytes" in screen.getvalue()
