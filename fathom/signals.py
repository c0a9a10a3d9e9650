"""Stopping on request: SIGINT and SIGTERM become a flag that is looked at between steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class StopRequest:
    """While entered, SIGINT and SIGTERM set ``signal_name`` and do nothing else, however often they come.

    Terminals and process managers often send the signal twice, to the group and to the process, so a second one does
    not cut the saving short; SIGKILL does, and loses only what came after the last checkpoint. Handlers can be set in
    the main thread only: elsewhere nothing is installed. What was installed before is put back on leaving.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self.handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Record the signal."""
        self.signal_name = signal.Signals(number).name
