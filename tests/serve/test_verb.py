"""What the command line refuses before anything is served."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from fathom.cli.main import guarded, make_app


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        guarded(lambda: make_app()(["serve", *arguments]))
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_port_in_use_is_told_before_the_model_answers(capsys: pytest.CaptureFixture[str], directory: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"127.0.0.1:{port} cannot be used" in refused(capsys, str(directory), "--port", port, "--device", "cpu")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--weights", "int3"], "--weights: unknown value 'int3'"),
        (["--cache", "int3"], "--cache: unknown value"),
        (["--draft", "luck"], "--draft: unknown value"),
        (["--max-batch", "0"], "max_batch"),
        (["--api-key-file", "/nowhere/keys"], "--api-key-file"),
        (["--host", "no.such.host.invalid"], "--host"),
        (["--drain-seconds", "-1"], "drain_seconds"),
    ],
)
def test_options_are_checked(
    capsys: pytest.CaptureFixture[str], directory: Path, arguments: list[str], words: str
) -> None:
    error = refused(capsys, str(directory), "--port", "0", "--device", "cpu", *arguments)
    assert error.count("error: ") == 1
    assert words in error
