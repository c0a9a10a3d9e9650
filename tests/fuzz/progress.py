"""Shows how far a run has come: one line that is rewritten on a terminal, a line every so often elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

_LINE_SECONDS = 15.0
"""Between lines where they stay."""


@dataclass(slots=True)
class Progress:
    """``targets`` run one after the other, each for ``seconds``."""

    targets: int
    seconds: float
    _done: int = 0
    _begin: float = field(default_factory=lambda: time.monotonic())
    _shown: float = field(default_factory=lambda: time.monotonic())
    _terminal: bool = field(default_factory=sys.stderr.isatty)

    def next_target(self) -> None:
        """Begin the next one."""
        self._done += 1
        self._begin = time.monotonic()

    def seconds_left(self) -> float:
        """Return about how long everything takes from now on."""
        here = max(0.0, self.seconds - (time.monotonic() - self._begin))
        return here + self.seconds * (self.targets - self._done - 1)

    def line(self, target: str, executions: int, findings: int) -> str:
        """Return the line that is shown."""
        left = self.seconds_left()
        time_left = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
        found = f"{findings} finding{'' if findings == 1 else 's'}"
        return f"[{self._done + 1}/{self.targets}] {target}: {executions:,} inputs, {found}, {time_left} left"

    def show(self, target: str, executions: int, findings: int) -> None:
        """Show the line, where it is time for one."""
        now = time.monotonic()
        if self._terminal:
            print(f"\r\x1b[2K{self.line(target, executions, findings)}", end="", file=sys.stderr, flush=True)
        elif now - self._shown >= _LINE_SECONDS:
            self._shown = now
            print(self.line(target, executions, findings), file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Remove the line from a terminal."""
        if self._terminal:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
