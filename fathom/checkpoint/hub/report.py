"""Bytes fetched from the hub, reported to a ``Progress`` in place of the library's progress bars."""

from __future__ import annotations

import threading
from typing import Any

from fathom.progress import Progress


class ByteReport:
    """Counts the bytes of one or more downloads as one; the earlier ones are reported with the last one's first."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._before = 0
        self._now = 0

    def bar_class(self, *, last: bool) -> Any:
        """Return the class of progress bars of the next download, which draws nothing."""
        from huggingface_hub.utils.tqdm import tqdm

        report = self
        drawn: Any = tqdm
        self._before, self._now = self._before + self._now, 0

        class Bar(drawn):  # type: ignore[misc]
            def __init__(self, *args: Any, **options: Any) -> None:
                self._counts_bytes = options.get("unit") == "B"
                super().__init__(*args, **(options | {"disable": True}))

            def update(self, n: float | None = 1) -> None:
                with report._lock:
                    self.n += n or 0
                    if self._counts_bytes:
                        report._advance(int(self.n), int(self.total or 0), shown=last)

        return Bar

    def _advance(self, done: int, total: int, *, shown: bool) -> None:
        """Take the bytes of this download so far, of whichever of its bars is further."""
        if done <= self._now:
            return
        self._now = done
        if shown:
            whole = self._before + total if total else None
            self._progress.update(self._before + done, whole, "bytes", phase="download")
