"""Whether a server takes requests, and whether its engine makes progress."""

from __future__ import annotations

from fathom.engine.worker import EngineWorker


class Lifecycle:
    """The state that /health and /ready report.

    An engine that has work but has not finished a step for ``stall_timeout_seconds`` counts as unhealthy: its thread
    may live and yet no request will ever be answered.
    """

    def __init__(self, worker: EngineWorker, *, stall_timeout_seconds: float) -> None:
        self._worker = worker
        self._stall_timeout_seconds = stall_timeout_seconds
        self.draining = False

    @property
    def fault(self) -> str | None:
        """Why the engine answers no requests, or None while it does."""
        if not self._worker.healthy:
            reason = self._worker.last_error
            return "the engine has stopped" + (f": {reason}" if reason else "")
        stalled = self._worker.stalled_seconds
        if stalled > self._stall_timeout_seconds:
            return f"the engine has requests but has not finished a step for {stalled:.0f} s; restart the server"
        return None

    def drain(self, seconds: float) -> None:
        """Take no new requests, and end those running after at most ``seconds``; returns when all have ended."""
        self.draining = True
        self._worker.close(drain_seconds=seconds)
