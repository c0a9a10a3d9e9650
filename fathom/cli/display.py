"""Live progress: a bar on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.text import Text

from fathom.cli.terminal import FilteredConsole, FilteredProgress
from fathom.errors import Interrupted
from fathom.locale import tr
from fathom.progress import NO_METRICS, amount, size

LOG_INTERVAL_SECONDS = 10.0
_MARK_SECONDS = 10.0
_MARKS = 6
"""Counts kept, one every ``_MARK_SECONDS``: the time left follows the pace since the oldest of them."""


def make_display(console: Console) -> LiveDisplay | PlainDisplay:
    """Choose the display that suits where the output goes."""
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


def duration(seconds: float) -> str:
    """Write seconds as people read them: 42 s, 7 min 5 s, 2 h 3 min."""
    whole = round(seconds)
    if whole < 60:
        return tr("{seconds} s", seconds=f"{seconds:.1f}" if seconds < 10 else whole)
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return tr("{minutes} min {seconds} s", minutes=minutes, seconds=rest)
    return tr("{hours} h {minutes} min", hours=minutes // 60, minutes=minutes % 60)


class TimeLeft:
    """Estimates the time left of a count from its pace of the last minute, resumed or not."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, float]] = deque(maxlen=_MARKS)
        self.rate = 0.0
        """Units a second; 0 where it is not known yet."""

    def update(self, now: float, done: float) -> None:
        """Take note of a count at a time in seconds; one that falls begins anew."""
        if self._marks and done < self._marks[-1][1]:
            self._marks.clear()
            self.rate = 0.0
        if not self._marks:
            self._marks.append((now, done))
        since, before = self._marks[0]
        if now > since:
            self.rate = (done - before) / (now - since)
        if now - self._marks[-1][0] >= _MARK_SECONDS:
            self._marks.append((now, done))

    def text(self, done: float, total: float | None) -> str:
        """Return the time left as text; empty where it is not known or nothing is left."""
        if not total or not self.rate or done >= total:
            return ""
        return tr("about {time} left", time=duration((total - done) / self.rate))


@contextmanager
def run_display(again: str) -> Iterator[LiveDisplay | PlainDisplay]:
    """Show a run's progress within a ``with`` block; an interruption names ``again``, the command that goes on."""
    display = make_display(FilteredConsole())
    try:
        yield display
    except Interrupted as error:
        raise Interrupted(tr("{problem}; continue with: {command}", problem=error, command=again)) from None
    finally:
        display.close()


class LiveDisplay:
    """One bar per stage, redrawn in place."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self.bar: FilteredProgress | None = None
        self.task: TaskID | None = None
        self.name = ""
        self._clock = clock
        self._time_left, self._counted = TimeLeft(), ("", "")

    def stage(self, name: str, index: int, total: int) -> None:
        """Start a bar."""
        self.close()
        self.name = name
        self._time_left = TimeLeft()
        self.bar = FilteredProgress(
            TextColumn(f"{index}/{total}", style="dim", markup=False),
            TextColumn("{task.description:<12}", style="bold", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}", markup=False),
            TextColumn("{task.fields[left]}", style="cyan", markup=False),
            TextColumn("{task.fields[metrics]}", style="dim", markup=False),
            console=self.console,
        )
        self.task = self.bar.add_task(name, total=None, count="", left="", metrics="")
        self.bar.start()

    def update(
        self, done: float, total: float | None, unit: str, *, phase: str = "", metrics: Mapping[str, str] = NO_METRICS
    ) -> None:
        """Move the bar."""
        if self.bar is None or self.task is None:
            return
        if self._counted != (phase, unit):
            self._counted, self._time_left = (phase, unit), TimeLeft()
        self._time_left.update(self._clock(), done)
        self.bar.update(
            self.task,
            completed=done,
            total=total,
            count=_count(done, total, unit, self._time_left.rate),
            left=self._time_left.text(done, total),
            metrics=_line(phase, metrics),
        )

    def message(self, text: str) -> None:
        """Print a line above the bar; indented where it belongs to a stage."""
        self.console.print(text if self.bar is None else f"  {text}", markup=False, highlight=False)

    def finish(self, seconds: float) -> None:
        """Replace the bar by one line."""
        self.close()
        self.console.print(
            Text.assemble((tr("done"), "green"), " ", (self.name, "bold"), " ", tr("in {time}", time=duration(seconds)))
        )

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class PlainDisplay:
    """Plain lines for logs and pipes."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self.name = ""
        self._clock = clock
        self._printed = 0.0
        self._time_left, self._counted = TimeLeft(), ("", "")

    def stage(self, name: str, index: int, total: int) -> None:
        """Name the stage."""
        self._print(f"[{index}/{total}] {name}")
        self.name = name
        self._printed = self._clock()
        self._time_left = TimeLeft()

    def update(
        self, done: float, total: float | None, unit: str, *, phase: str = "", metrics: Mapping[str, str] = NO_METRICS
    ) -> None:
        """Print a line when the last one is old enough."""
        now = self._clock()
        if self._counted != (phase, unit):
            self._counted, self._time_left = (phase, unit), TimeLeft()
        self._time_left.update(now, done)
        if now - self._printed < LOG_INTERVAL_SECONDS:
            return
        self._printed = now
        parts = (
            _count(done, total, unit, self._time_left.rate),
            _line(phase, metrics),
            self._time_left.text(done, total),
        )
        self._print(f"  {self.name}: {', '.join(part for part in parts if part)}")

    def message(self, text: str) -> None:
        """Print a line; indented where it belongs to a stage."""
        self._print(f"  {text}" if self.name else text)

    def finish(self, seconds: float) -> None:
        """Say how long the stage took."""
        self._print("  " + tr("{name}: done in {time}", name=self.name, time=duration(seconds)))
        self.name = ""

    def close(self) -> None:
        """End the stage, if one is open."""
        self.name = ""

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _count(done: float, total: float | None, unit: str, rate: float) -> str:
    speed = f", {size(rate)}/s" if unit == "bytes" and rate else ""
    if not total:
        return f"{amount(done)} {tr(unit)}{speed}"
    return tr("{done} of {total} {unit}", done=amount(done), total=amount(total), unit=tr(unit)) + speed


def _line(phase: str, metrics: Mapping[str, str]) -> str:
    return ", ".join([*([tr(phase)] if phase else []), *(f"{name} {value}" for name, value in metrics.items())])
