"""Whether a server takes requests."""

from __future__ import annotations

from fathom.engine.worker import EngineWorker


class Lifecycle:
    """Ready, or on its way out."""

    def __init__(self, worker: EngineWorker) -> None:
        self._worker = worker
        self.draining = False

    @property
    def healthy(self) -> bool:
        """Whether the engine steps."""
        return self._worker.healthy

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.healthy and not self.draining

    def drain(self, seconds: float) -> None:
        """Take no new requests, and end those running after at most ``seconds``; returns when all have ended."""
        self.draining = True
        self._worker.close(drain_seconds=seconds)
