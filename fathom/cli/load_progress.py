"""What a verb shows while a model is fetched and loaded: a bar on a terminal, one line for a download elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

DOWNLOADS = frozenset({"fetch", "download"})


class LoadProgress:
    """A ``Report`` to be used in a ``with`` block; writes to stderr, so that pipes carry the answer alone."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.stage = ""

    def __enter__(self) -> LoadProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __call__(self, stage: str, done: int, total: int | None, unit: str) -> None:
        """Show how far a stage is; a new stage replaces the one before."""
        if not self.console.is_terminal:
            if stage != self.stage and stage in DOWNLOADS:
                line = f"fetching {self.name}{_size(total)} ..."
                self.console.print(line, markup=False, highlight=False, soft_wrap=True)
            self.stage = stage
            return
        if stage != self.stage or self.bar is None or self.task is None:
            self._begin(stage, total)
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, total=total if done else None)  # a bar of nothing yet pulses

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _begin(self, stage: str, total: int | None) -> None:
        self.close()
        self.stage = stage
        self.bar = Progress(
            TextColumn(f"{stage} [bold]{self.name}[/bold]{_size(total) if stage in DOWNLOADS else ''}"),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task(stage, total=None)
        self.bar.start()


def _size(total: int | None) -> str:
    return f" ({total / 1e6:.0f} MB)" if total else ""
