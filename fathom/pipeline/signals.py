"""SIGINT and SIGTERM while a recipe runs: they end the step that is running, and never a write of the run's state."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from fathom.errors import Interrupted

REPEAT_SECONDS = 1.0
"""Signals that follow one another within this time count as one, so that the second does not cut clean-up short."""


class RunSignals:
    """While entered, a signal raises ``Interrupted`` inside ``interruptible`` and is otherwise kept for ``check``.

    A step may install handlers of its own meanwhile. Handlers can be set in the main thread only: elsewhere nothing is
    installed. What was installed before is restored on leaving.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._interruptible = False
        self._raised = -REPEAT_SECONDS
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> RunSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let signals raise ``Interrupted`` within the block, and one that arrived before it at its start."""
        self._interruptible = True
        try:
            self.check()
            yield
        finally:
            self._interruptible = False

    def check(self) -> None:
        """Raise ``Interrupted`` if a signal arrived at any time."""
        if self.signal_name is not None:
            raise Interrupted(f"{self.signal_name} arrived; finished steps are kept")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        now = time.monotonic()
        if self._interruptible and now - self._raised >= REPEAT_SECONDS:
            self._raised = now
            self.check()
