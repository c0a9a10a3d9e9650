"""Commands typed as a user types them: each in a process of its own, whose output is read as text."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONGEST_SECONDS = 240


@dataclass(frozen=True, slots=True)
class Typed:
    """How one command ended, and what it printed."""

    line: str
    code: int
    out: str
    err: str

    @property
    def shown(self) -> str:
        """All that the user saw."""
        return f"$ {self.line}\n{self.out}{self.err}"

    def next_commands(self) -> list[str]:
        """Return the commands of ``fathom`` that the output says to type."""
        return [match[1].strip() for match in re.finditer(r"(?:^|\s)(fathom [a-z].*)$", self.out + self.err, re.M)]


@dataclass(frozen=True, slots=True)
class Terminal:
    """A folder in which commands are typed. ``fathom`` is this checkout; ``transcript`` is all that was shown."""

    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    transcript: list[Typed] = field(default_factory=list)

    def type(self, line: str, *, keys: str = "", stop_at: str | None = None, code: int = 0) -> Typed:
        """Run a command to its end, with ``keys`` on its standard input, and check how it exits.

        With ``stop_at``, Ctrl+C is pressed as soon as a line holds that text.
        """
        running = subprocess.Popen(
            self._words(line),
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        shown = "" if stop_at is None else _read_until(running, stop_at)
        out, err = running.communicate(keys, timeout=LONGEST_SECONDS)
        typed = Typed(line, running.returncode, shown + out, err)
        self.transcript.append(typed)
        assert typed.code == code, typed.shown
        return typed

    @contextmanager
    def serving(self, line: str) -> Iterator[str]:
        """Run ``fathom serve ... --port 0`` meanwhile; yields the address that it prints."""
        server = subprocess.Popen(
            self._words(line),
            cwd=self.folder,
            env=self._environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        assert server.stderr is not None
        shown, address = "", None
        try:
            while address is None:
                read = server.stderr.readline()
                assert read, f"$ {line}\n{shown}"
                shown += read
                address = re.search(r"serving .* at (http://\S+)", shown)
            yield address[1]
        finally:
            server.send_signal(signal.SIGINT)
            _, rest = server.communicate(timeout=LONGEST_SECONDS)
            self.transcript.append(Typed(line, server.returncode, "", shown + rest))

    def _words(self, line: str) -> list[str]:
        first, *words = shlex.split(line)
        assert first == "fathom", line
        return [sys.executable, "-m", "fathom", *words]

    def _environment(self) -> dict[str, str]:
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        return {**os.environ, **threads, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", **self.variables}


def _read_until(running: subprocess.Popen[str], text: str) -> str:
    """Read standard output until a line holds a text, press Ctrl+C, and return what was read."""
    assert running.stdout is not None
    shown = ""
    for read in running.stdout:
        shown += read
        if text in read:
            running.send_signal(signal.SIGINT)
            break
    return shown
