"""SIGINT and SIGTERM while a recipe runs: they end the step that is running, and never a write of the run's state."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from types import FrameType

from fathom.errors import Interrupted
from fathom.signals import StopRequest

REPEAT_SECONDS = 1.0
"""Signals that follow one another within this time count as one, so that the second does not cut clean-up short."""


class RunSignals(StopRequest):
    """While entered, a signal raises ``Interrupted`` inside ``interruptible`` and is otherwise kept for ``check``.

    A step may install handlers of its own meanwhile.
    """

    def __init__(self) -> None:
        super().__init__()
        self._interruptible = False
        self._raised = -REPEAT_SECONDS

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

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Keep the signal, and raise ``Interrupted`` inside ``interruptible``."""
        super().handle(number, frame)
        now = time.monotonic()
        if self._interruptible and now - self._raised >= REPEAT_SECONDS:
            self._raised = now
            self.check()
