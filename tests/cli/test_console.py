"""Every verb on consoles that cannot write every character: no traceback, and UTF-8 as it is."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fathom.cli.console import prepare_streams
from fathom.cli.main import main
from tests.cli.conftest import RECIPE
from tests.command_line import Outcome

ENCODINGS = ["cp1252", "gbk", "ascii"]
HARD = "模型🌊─│┌█…“é”≥"
QUICK = ("--device", "cpu", "--max-tokens", "3")


@dataclass
class Streams:
    """The bytes of the three standard streams in one encoding."""

    encoding: str
    run: Callable[..., Outcome]
    out: bytes = b""


@pytest.fixture(params=ENCODINGS)
def console(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Streams:
    """Return a console of an encoding, and a function that runs ``fathom ARGUMENTS`` on it."""

    def run(*arguments: str | Path, stdin: bytes = b"") -> Outcome:
        out, err = io.BytesIO(), io.BytesIO()
        for name, buffer, errors in (("stdout", out, "strict"), ("stderr", err, "backslashreplace")):
            stream = io.TextIOWrapper(buffer, encoding=request.param, errors=errors, write_through=True)
            monkeypatch.setattr(sys, name, stream)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding=request.param))
        monkeypatch.setattr(sys, "argv", ["fathom", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        found.out = out.getvalue()
        texts = [buffer.getvalue().decode(request.param) for buffer in (out, err)]
        return Outcome(code if isinstance(code, int) else 0, *texts)

    found = Streams(request.param, run)
    return found


@pytest.fixture(scope="session")
def hard(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run in a folder whose name few encodings have."""
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("hard") / HARD))


def test_verbs_that_print_tables_and_text(console: Streams, hard: Path, texts: Path, tmp_path: Path) -> None:
    for arguments in (
        ("models",),
        ("--help",),
        ("study",),
        ("train", RECIPE, "--text", texts, "--out", hard, "--resume"),
        ("inspect", hard),
        ("generate", hard, "--prompt", HARD, "--echo", *QUICK),
        ("convert", hard, tmp_path / HARD, "--to", "hf"),
    ):
        found = console.run(*arguments)
        assert found.code == 0, found.err
        assert found.out
    assert (tmp_path / HARD / "config.json").exists()


def test_json_is_whole_in_every_encoding(console: Streams, hard: Path, texts: Path, tmp_path: Path) -> None:
    found = console.run("inspect", hard, "--json")
    assert HARD in json.loads(found.out)["path"]
    named = tmp_path / f"{HARD}.txt"
    named.write_text("The river sees the tower. " * 20, encoding="utf-8")
    found = console.run("evaluate", hard, "--text", named, "--json", "--device", "cpu")
    assert found.code == 0, found.err
    assert json.loads(found.out)
    assert json.loads(console.run("models", "--json").out)


def test_errors_tell_a_file_by_its_name(console: Streams) -> None:
    found = console.run("inspect", "模型")
    found.refused("no such file")
    shown = "模型" if console.encoding == "gbk" else r"\u6a21\u578b"
    assert found.err.startswith(f"error: {shown}: no such file")
    assert console.run(f"模型{HARD}").code == 2  # no such verb


def test_what_is_piped_in_is_read_in_the_streams_encoding(console: Streams, hard: Path) -> None:
    text = "The river 模型" if console.encoding == "gbk" else "The river é"
    piped = text.encode(console.encoding, "ignore")
    found = console.run("generate", hard, "--echo", *QUICK, stdin=piped)
    assert found.code == 0, found.err
    assert console.out.startswith(piped)
    for broken in ("chat", "generate"):
        found = console.run(broken, hard, *QUICK, stdin=b"The river \xff\xfe\x81\n/exit\n")
        assert found.code == 0, found.err


@pytest.mark.parametrize(
    ("encoding", "text", "written"),
    [
        ("cp1252", "é “a” 模型 🌊 ─│┌█ ≥", b"\xe9 \x93a\x94 ?? ? -|+# >="),
        ("gbk", "模型 🌊 é", "模型 ? é".encode("gbk")),
        ("ascii", "é “a” … ﬁ \u200b1\udcff", b'e "a" ... fi 1?'),
        ("utf-8", "é 模型 🌊", "é 模型 🌊".encode()),
    ],
)
def test_similar_characters_stand_in_for_those_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, encoding: str, text: str, written: bytes
) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding=encoding, write_through=True))
    prepare_streams()
    sys.stdout.write(text)
    assert buffer.getvalue() == written


def test_what_was_asked_for_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="xmlcharrefreplace")
    monkeypatch.setattr(sys, "stdout", asked)
    prepare_streams()
    assert asked.errors == "xmlcharrefreplace"


@pytest.mark.parametrize(
    ("environment", "arguments"),
    [
        ({"PYTHONIOENCODING": "cp1252"}, ("models",)),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, ("inspect", HARD)),
        ({"PYTHONUTF8": "1"}, ("inspect", HARD)),
    ],
)
def test_processes_on_such_consoles(environment: dict[str, str], arguments: tuple[str, ...], tmp_path: Path) -> None:
    given = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}
    command = [sys.executable, "-m", "fathom", *arguments]
    ended = subprocess.run(command, env=given | environment, capture_output=True, cwd=tmp_path, timeout=100)
    assert b"Traceback" not in ended.stderr
    if arguments[0] == "models":
        assert ended.returncode == 0
        return
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"error: ")
    if "PYTHONUTF8" in environment and environment["PYTHONUTF8"] == "1":
        assert HARD.encode() in ended.stderr
