"""What a verb shows while a model is fetched and loaded: a bar on a terminal, one line for a download elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn

from fathom.cli.terminal import FilteredConsole, FilteredProgress
from fathom.locale import tr
from fathom.progress import NO_METRICS, NullProgress

DOWNLOADS = frozenset({"fetch", "download"})


class LoadProgress(NullProgress):
    """A ``Progress`` to be used in a ``with`` block; writes to stderr, so that pipes carry the answer alone."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.console = FilteredConsole(stderr=True)
        self.bar: FilteredProgress | None = None
        self.task: TaskID | None = None
        self.phase = ""

    def __enter__(self) -> LoadProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def update(
        self, done: float, total: float | None, unit: str, *, phase: str = "", metrics: Mapping[str, str] = NO_METRICS
    ) -> None:
        """Show the progress of a phase; a new phase replaces the one before."""
        if not self.console.is_terminal:
            if phase != self.phase and phase in DOWNLOADS:
                line = tr("fetching {name} ...", name=self.name + _size(total))
                self.console.print(line, soft_wrap=True)
            self.phase = phase
            return
        if phase != self.phase or self.bar is None or self.task is None:
            self._start(phase, total)
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, total=total if done else None)  # a bar of nothing yet pulses

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _start(self, phase: str, total: float | None) -> None:
        self.close()
        self.phase = phase
        self.bar = FilteredProgress(
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[model]}", style="bold", markup=False),
            TextColumn("{task.fields[size]}", markup=False),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TimeRemainingColumn(compact=True),
            console=self.console,
        )
        size = _size(total).strip() if phase in DOWNLOADS else ""
        self.task = self.bar.add_task(tr(phase), total=None, model=self.name, size=size)
        self.bar.start()


def _size(total: float | None) -> str:
    return f" ({total / 1e6:.0f} MB)" if total else ""
