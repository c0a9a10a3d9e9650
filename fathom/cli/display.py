"""Live progress: a bar on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fathom.progress import NO_FACTS

LOG_INTERVAL_SECONDS = 10.0
RATE_WINDOW = 6
"""Lines that the time left is reckoned over, so that it follows the pace of the last minute, resumed or not."""


def make_display(console: Console) -> LiveDisplay | PlainDisplay:
    """Choose the display that suits where the output goes."""
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


def duration(seconds: float) -> str:
    """Write seconds as people read them: 42 s, 7 min 5 s, 2 h 3 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def amount(value: float) -> str:
    """Write a count shortly: 950, 12.3k, 4.56M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"


class LiveDisplay:
    """One bar per step, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.name = ""

    def stage(self, name: str, index: int, total: int) -> None:
        """Begin a bar."""
        self.close()
        self.name = name
        self.bar = Progress(
            TextColumn(f"[dim]{index}/{total}[/dim] [bold]{name:<12}[/bold]"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[facts]}[/dim]"),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task(name, total=None, count="", facts="")
        self.bar.start()

    def update(self, done: float, total: float | None, unit: str, facts: Mapping[str, str] = NO_FACTS) -> None:
        """Move the bar."""
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, total=total, count=_count(done, total, unit), facts=_line(facts))

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, markup=False, highlight=False)

    def finish(self, seconds: float) -> None:
        """Replace the bar by one line."""
        self.close()
        self.console.print(f"[green]done[/green] [bold]{self.name}[/bold] in {duration(seconds)}", highlight=False)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class PlainDisplay:
    """Plain lines for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.name = ""
        self.printed = 0.0
        self.marks: deque[tuple[float, float]] = deque(maxlen=RATE_WINDOW)

    def stage(self, name: str, index: int, total: int) -> None:
        """Name the step."""
        self.name = name
        self.printed = time.monotonic()
        self.marks.clear()
        self.message(f"[{index}/{total}] {name}")

    def update(self, done: float, total: float | None, unit: str, facts: Mapping[str, str] = NO_FACTS) -> None:
        """Print a line when the last one is old enough."""
        now = time.monotonic()
        if self.marks and done < self.marks[-1][1]:  # another count began
            self.marks.clear()
        if not self.marks:
            self.marks.append((now, done))
        if now - self.printed < LOG_INTERVAL_SECONDS:
            return
        self.printed = now
        since, then = self.marks[0]
        left = ""
        if total and then < done < total:
            left = f", about {duration((now - since) * (total - done) / (done - then))} left"
        self.marks.append((now, done))
        shown = _line(facts)
        self.message(f"  {self.name}: {_count(done, total, unit)}{', ' + shown if shown else ''}{left}")

    def message(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def finish(self, seconds: float) -> None:
        """Say how long the step took."""
        self.message(f"  {self.name}: done in {duration(seconds)}")

    def close(self) -> None:
        """Nothing is open."""


def _count(done: float, total: float | None, unit: str) -> str:
    of = f" of {amount(total)}" if total else ""
    return f"{amount(done)}{of} {unit}"


def _line(facts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}".strip() for name, value in facts.items())
