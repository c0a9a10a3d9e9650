"""What is shown of fetching and loading: nothing in a pipe but downloads, a bar that leaves no trace on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fathom.cli.load_progress import LoadProgress


def test_a_pipe_hears_of_a_download_once_and_of_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with LoadProgress("tiny") as progress:
        progress.update(0, 98_362_432, "bytes", phase="fetch")
        progress.update(98_362_432, 98_362_432, "bytes", phase="fetch")
        progress.update(1, 2, "bytes", phase="load")
    captured = capsys.readouterr()
    assert captured.err == "fetching tiny (98 MB) ...\n"
    assert captured.out == ""


def test_a_terminal_sees_each_stage_and_is_left_clean() -> None:
    screen = io.StringIO()
    with LoadProgress("tiny") as progress:
        progress.console = Console(file=screen, force_terminal=True, width=80)
        progress.update(0, 5_000_000, "bytes", phase="fetch")
        progress.update(50, 100, "bytes", phase="load")
        assert progress.bar is not None
        assert progress.bar.tasks[0].percentage == 50
    assert progress.bar is None
    assert "fetch" in screen.getvalue()
    assert "(5 MB)" in screen.getvalue()
    assert "50/100 bytes" in screen.getvalue()
