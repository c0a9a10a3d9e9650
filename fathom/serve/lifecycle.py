"""Whether a server takes requests, and whether its engines make progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from fathom.engine.worker import EngineWorker


class Lifecycle:
    """The state that /health and /ready report, over all loaded models.

    An engine that has work but has not finished a step for ``stall_timeout_seconds`` counts as unhealthy: its thread
    may live and yet no request will ever be answered. ``workers`` returns the loaded models' workers by name.
    """

    def __init__(self, workers: Callable[[], Mapping[str, EngineWorker]], *, stall_timeout_seconds: float) -> None:
        self._workers = workers
        self._stall_timeout_seconds = stall_timeout_seconds
        self.draining = False

    @property
    def fault(self) -> str | None:
        """Why an engine answers no requests, or None while all do."""
        workers = self._workers()
        for name, worker in workers.items():
            fault = self._fault(worker)
            if fault is not None:
                return fault if len(workers) == 1 else f"{name}: {fault}"
        return None

    @property
    def stalled_seconds(self) -> float:
        """How long the engine that has stood longest has made no progress; 0.0 where none has requests."""
        return max((worker.stalled_seconds for worker in self._workers().values()), default=0.0)

    def drain(self, seconds: float) -> None:
        """Take no new requests, and end those running after at most ``seconds``; returns when all have ended."""
        self.draining = True
        workers = list(self._workers().values())
        if workers:
            with ThreadPoolExecutor(len(workers), thread_name_prefix="fathom-drain") as threads:
                list(threads.map(lambda worker: worker.close(drain_seconds=seconds), workers))

    def _fault(self, worker: EngineWorker) -> str | None:
        if not worker.healthy:
            reason = worker.last_error
            return "the engine has stopped" + (f": {reason}" if reason else "")
        stalled = worker.stalled_seconds
        if stalled > self._stall_timeout_seconds:
            return f"the engine has requests but has not finished a step for {stalled:.0f} s; restart the server"
        return None
