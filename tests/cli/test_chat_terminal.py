"""``fathom chat`` on a terminal: commands, several lines, and Ctrl+C."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fathom.cli.conversation import AnswerStop

pty = pytest.importorskip("pty")
LONG = ("--max-tokens", "160", "--temperature", "0")
SECONDS = 120


class Terminal:
    """A program on a pseudo-terminal; it is ended when the block is left."""

    def __init__(self, *arguments: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ |= {"OMP_NUM_THREADS": "1", "TERM": "dumb", "NO_COLOR": "1"}
            os.execv(sys.executable, [sys.executable, "-m", "fathom", *arguments])
        self.shown = ""

    def read(self, pattern: str) -> str:
        """Return what is shown up to a pattern, which must come."""
        deadline, begun = time.monotonic() + SECONDS, len(self.shown)
        while not (found := re.search(pattern, self.shown[begun:])):
            assert time.monotonic() < deadline, self.shown
            if select.select([self.fd], [], [], 1.0)[0]:
                try:
                    self.shown += os.read(self.fd, 4096).decode(errors="replace")
                except OSError:  # the program left
                    raise AssertionError(self.shown) from None
        return self.shown[begun : begun + found.end()]

    def type(self, text: str) -> None:
        """Type a line."""
        os.write(self.fd, f"{text}\n".encode())

    def interrupt(self) -> None:
        """Press Ctrl+C."""
        os.write(self.fd, b"\x03")

    def leave(self) -> int:
        """Press Ctrl+C at the prompt and return the exit code of the program, which must end.

        Python's readline loses the key between showing its prompt and waiting for a line, so it is pressed once more.
        """
        presses = [0.0, 10.0]
        begun = time.monotonic()
        while (waited := time.monotonic() - begun) < SECONDS:
            if presses and waited >= presses[0]:
                presses.pop(0)
                self.interrupt()
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self.fd, 4096).decode(errors="replace")
                except OSError:
                    time.sleep(0.01)
        raise AssertionError(self.shown)

    def close(self) -> None:
        """Kill the program if it still runs."""
        if self.pid:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture
def terminal(finished: Path) -> Iterator[Terminal]:
    opened = Terminal("chat", str(finished), *LONG)
    yield opened
    opened.close()


def test_commands_and_ctrl_c_on_a_real_terminal(terminal: Terminal, tmp_path: Path) -> None:
    saved = tmp_path / "chat.jsonl"
    assert "/help lists the commands" in terminal.read("> $")
    terminal.type("/help")
    assert "/params" in terminal.read("> $")
    terminal.type("/retryy")
    assert "did you mean /retry?" in terminal.read("> $")
    terminal.type("/params max_token=3")
    assert "write it as max_tokens=VALUE" in terminal.read("> $")
    answer = ""
    while "(stopped)" not in answer:  # a busy machine may see the whole answer before the key
        terminal.type("/reset")
        terminal.read("> $")
        terminal.type("the river\\")
        terminal.read(r"\. $")
        terminal.type("the road")
        terminal.read(r"the road\r?\n.")
        terminal.interrupt()
        answer = terminal.read("> $")
    terminal.type("/params max_tokens=5")
    terminal.read("> $")
    terminal.type("/system Be brief.")
    terminal.read("> $")
    terminal.type('"""the tower')
    terminal.read(r"\. $")
    terminal.type('  of stone"""')
    terminal.read("> $")
    terminal.type("/retry")
    terminal.read("> $")
    terminal.type(f"/save {saved}")
    assert "saved 5 messages" in terminal.read("> $")
    terminal.type(f"/save {saved}")
    assert "name another file" in terminal.read("> $")
    assert terminal.leave() == 0
    messages = json.loads(saved.read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert (messages[0]["content"], messages[1]["content"]) == ("Be brief.", "the river\nthe road")
    assert messages[3]["content"] == "the tower\n  of stone"


def test_a_second_ctrl_c_during_an_answer_leaves() -> None:
    with AnswerStop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
