"""What a terminal receives, byte by byte, when the words of models, files and names are hostile."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from fathom.cli.diagnosis.finding import Finding
from fathom.cli.display import LiveDisplay
from fathom.cli.load_progress import LoadProgress
from fathom.cli.main import main
from fathom.cli.terminal import FilteredConsole, filter_streams
from fathom.errors import FathomError
from fathom.logs import warn_once
from fathom.terminal import visible

pty = pytest.importorskip("pty", reason="terminals of this kind are POSIX")
tty = pytest.importorskip("tty", reason="terminals of this kind are POSIX")

HOSTILE = (
    "\x1b]52;c;aGk=\x07\x1b]8;;http:evil\x1b\\x\x1b]8;;\x1b\\\x1b[35;5m\x1b[2J\x1b[8m\x9b2J\x90q\x9c\u202edlrow\u2066"
    "\x08\x7f\x0c\U000e0041\u2028[bold red]m[/bold red][link=http:evil]l[/link]:bomb:"
)
NAME = HOSTILE.replace("/", "")
"""May be the name of a file."""
SHOWN = visible(HOSTILE)
MARK = "]52;c;aGk"
_STYLE = r"(?:[0-4]|22|[39][0-7]|38;5;\d+)"
OWN = re.compile(rf"\x1b\[(?:{_STYLE}(?:;{_STYLE})*)?m|\x1b\[(?:\?(?:25|2004)[lh]|2K|1A)|\r")
"""Styles, what redraws a bar, and readline's switch of bracketed paste."""


class Terminal:
    """A terminal and all that is written to it."""

    def __init__(self) -> None:
        self._master, self.end = pty.openpty()
        tty.setraw(self.end)
        self._parts: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def type(self, text: str) -> None:
        """Type lines at its keyboard."""
        os.write(self._master, text.encode())

    def close(self) -> str:
        """Return all that was written, as text."""
        os.close(self.end)
        self._reader.join(20)
        os.close(self._master)
        return b"".join(self._parts).decode()

    def _read(self) -> None:
        with suppress(OSError):  # every other end is closed
            while part := os.read(self._master, 65536):
                self._parts.append(part)


def check(written: str) -> None:
    """Check that nothing but styles and bars of Fathom's own was written that a terminal obeys."""
    rest = OWN.sub("", written)
    assert visible(rest) == rest
    assert "\x1b[35;5m" not in written
    assert "\x1b[8m" not in written


@contextmanager
def terminal_streams(monkeypatch: pytest.MonkeyPatch, typed: str = "") -> Iterator[list[str]]:
    """Let the standard streams be a terminal; the list has what it received in the end."""
    screen, received = Terminal(), list[str]()
    with monkeypatch.context() as patch:
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            patch.setattr(sys, name, open(os.dup(screen.end), mode, encoding="utf-8", errors="surrogateescape"))  # noqa: SIM115
        patch.setenv("TERM", "xterm-256color")
        for name in ("NO_COLOR", "FORCE_COLOR", "CI", "COLUMNS"):
            patch.delenv(name, raising=False)
        screen.type(typed)
        opened = (sys.stdin, sys.stdout, sys.stderr)
        try:
            yield received
        finally:
            for stream in opened:
                stream.close()
            received.append(screen.close())


Run = Callable[..., str]


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs ``fathom ARGUMENTS`` on a terminal and returns what it received, checked."""

    def run(*arguments: str | Path, typed: str = "") -> str:
        with terminal_streams(monkeypatch, typed) as received:
            monkeypatch.setattr(sys, "argv", ["fathom", *map(str, arguments)])
            with suppress(SystemExit):
                main()
        check(received[0])
        return OWN.sub("", received[0])

    return run


@pytest.fixture
def hostile_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every piece of an answer be hostile."""
    from fathom.tokenizer.pieces import StreamDecoder

    monkeypatch.setattr(StreamDecoder, "push", lambda self, token_id: HOSTILE)


LINES = ("--device", "cpu", "--max-tokens", "4")


def test_generate_and_chat(on_terminal: Run, finished: Path, hostile_words: None) -> None:
    assert SHOWN in on_terminal("generate", finished, "--prompt", HOSTILE, "--echo", *LINES)
    assert SHOWN in on_terminal("chat", finished, *LINES, typed="hello\n/exit\n")
    assert "error: " in on_terminal("chat", finished, *LINES, typed=f"/image {HOSTILE}\nhello\n/exit\n")


def test_evaluate_convert_and_inspect(on_terminal: Run, finished: Path, texts: Path, tmp_path: Path) -> None:
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / f"{NAME}.txt").write_text((texts / "0.txt").read_text() * 3)
    assert "row-bold" in on_terminal("evaluate", finished, "--text", folder, "--max-tokens", "100", "--device", "cpu")
    assert visible(NAME) in on_terminal("convert", finished, folder / "hf", "--to", "hf")
    converted = folder / "hf"
    (converted / NAME).write_text("")
    config = converted / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": f"{HOSTILE}\n{HOSTILE}"}))
    for json_too in ((), ("--json",)):
        shown = on_terminal("inspect", converted, *json_too)
        assert f"\\u001b{MARK}" in shown
        assert "[bold red]m[/bold red]" in shown
        assert ":bomb:" in shown
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": HOSTILE * 2, HOSTILE: 1}) + "\n")
    assert "\\u001b]52" in on_terminal("inspect", rows)


def test_errors_usage_and_verbs_without_a_model(
    on_terminal: Run, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = HOSTILE.replace("=", "")  # which ends the name of an option
    for arguments in (
        ("inspect", word),
        ("inspect", "a", word),
        (word,),
        ("generate", finished, f"--{word}"),
        ("train", word),
        ("study", word),
        ("serve", word),
        ("models", "--family", word),
    ):
        assert MARK in on_terminal(*arguments)
    found = [Finding(HOSTILE, HOSTILE, HOSTILE, "broken", HOSTILE)]
    monkeypatch.setattr("fathom.cli.doctor.diagnose", lambda: found)
    assert on_terminal("doctor").count(SHOWN) == 4
    cached = [SimpleNamespace(name=HOSTILE, nbytes=1)]
    monkeypatch.setattr("fathom.inference.loading.fetched_models", lambda directory: cached)
    assert "\\u0007\\u001b" in on_terminal("models", "--cached")


def test_help_keeps_its_styles(on_terminal: Run) -> None:
    assert "Usage" in on_terminal("--help")
    assert "Usage" in on_terminal("chat", "--help")
    assert "\\u001b" not in on_terminal("models") + on_terminal("--help")


def test_bars_and_what_is_printed_above_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal_streams(monkeypatch) as received:
        filter_streams()
        display = LiveDisplay(FilteredConsole())
        display.stage(HOSTILE, 1, 2)
        for done in range(5):
            display.update(done, 5, HOSTILE, phase=HOSTILE, metrics={HOSTILE: HOSTILE})
            assert display.bar is not None
            display.bar.refresh()
            display.message(HOSTILE)
            print(HOSTILE)
            print(HOSTILE, file=sys.stderr)
        logging.getLogger("elsewhere").warning("%s", HOSTILE)
        sys.stderr.write("a part of a line, ")
        display.finish(1.0)
        sys.stderr.write("and its rest\n")
        with LoadProgress(HOSTILE) as progress:
            progress.update(1, 5, "bytes", phase="fetch")
            warn_once(f"a warning {HOSTILE}")
    check(received[0])
    shown = OWN.sub("", received[0])
    assert shown.count(MARK) >= 20
    assert shown.count(SHOWN) >= 10
    assert "a part of a line, and its rest\n" in shown
    assert "[bold red]m[/bold red]" in shown


def in_process(command: list[str], typed: str = "") -> str:
    """Run a command on a terminal of its own; return what that received."""
    screen = Terminal()
    screen.type(typed)
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), screen.end)
    try:
        subprocess.run(command, **streams, env=os.environ | {"TERM": "xterm-256color"}, timeout=100, check=False)
    finally:
        written = screen.close()
    return written


def test_tracebacks() -> None:
    code = (
        "import sys; sys.argv = ['fathom', 'doctor']; from fathom.cli import doctor; from fathom.cli.main import main\n"
    )
    code += f"def fail(): raise RuntimeError({HOSTILE!r})\ndoctor.diagnose = fail\nmain()"
    written = in_process([sys.executable, "-c", code])
    check(written)
    assert f"RuntimeError: {SHOWN}" in written


@pytest.mark.slow
def test_a_real_process_on_a_terminal_and_in_a_pipe(finished: Path) -> None:
    """Hot sampling draws single bytes, controls among them: a pipe gets them, a terminal their escapes."""
    options = ["--seed", "1", "--temperature", "50", "--top-p", "1", "--max-tokens", "150", "--device", "cpu"]
    command = [sys.executable, "-m", "fathom", "generate", str(finished), "--prompt", "x", *options]
    piped = subprocess.run(command, capture_output=True, timeout=100, check=True).stdout.decode()
    assert visible(piped) != piped
    written = in_process(command)
    check(written)
    assert visible(piped) in written
    written = in_process([sys.executable, "-m", "fathom", "chat", str(finished), *options], "hello\n/exit\n")
    check(written)
    assert "\\u00" in written


def test_errors_are_filtered_in_pipes_too(capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "fathom", "inspect", HOSTILE]
    ended = subprocess.run(command, capture_output=True, timeout=100, check=False)
    assert ended.stderr.decode().startswith("error: \\u001b]52;c;aGk=\\u0007")
    assert ended.stderr.count(b"\n") == 1
    assert str(FathomError(HOSTILE)) == SHOWN


def test_no_verb_writes_past_the_filter() -> None:
    """``typer.echo`` writes to Windows consoles by itself, and rich's own console passes escape codes."""
    past = re.compile(r"\becho\(|(?<!Filtered)\b(?:Console|Progress)\(|std(?:out|err)\.buffer|\bos\.write\(")
    cli = Path(sys.modules["fathom.cli.main"].__file__ or "").parent
    found = {
        f"{file.name}: {line.strip()}"
        for file in cli.rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if past.search(line) and not line.startswith("class ")
    }
    assert found == set()
