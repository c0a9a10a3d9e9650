"""The limit on requests in progress; check and count are one step of the event loop."""

from __future__ import annotations

from collections.abc import Callable

from fathom.serve.errors import ApiError
from fathom.serve.metrics import Metrics


class RequestSlot:
    """One request's slot among those in progress; ``release`` is idempotent."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._held = True
        metrics.begin()

    def release(self, *, answered: bool = False) -> None:
        """Free the slot; ``answered`` says that the engine worked on it, for the estimate of Retry-After."""
        if self._held:
            self._held = False
            self._metrics.end(answered=answered)


class AdmissionControl:
    """Lets at most ``limit`` requests be in progress, from before their prompt is prepared until they are answered."""

    def __init__(self, limit: int, metrics: Metrics, retry_after: Callable[[], int]) -> None:
        self._limit = limit
        self._metrics = metrics
        self._retry_after = retry_after

    def acquire(self) -> RequestSlot:
        """Take a slot, which the caller must release.

        Raises:
            ApiError: 429, all slots are taken.
        """
        in_progress = self._metrics.in_progress
        if in_progress >= self._limit:
            seconds = self._retry_after()
            raise ApiError(
                429,
                f"{in_progress} requests are in progress; try again in {seconds} s",
                code="too_many_requests",
                retry_after=seconds,
            )
        return RequestSlot(self._metrics)
