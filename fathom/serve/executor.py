"""Threads for the CPU work before generation: templates, tokenization, images, grammars."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fathom.serve.errors import ApiError

T = TypeVar("T")


class PreprocessExecutor:
    """A thread pool with a limit on pending work and a timeout for each piece."""

    def __init__(self, *, threads: int, max_jobs: int, seconds: float) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="fathom-serve")
        self._max_jobs = max_jobs
        self._seconds = seconds
        self.pending = 0

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread and return what it returns.

        Raises:
            ApiError: 429, ``max_jobs`` are pending; 400, it took over ``seconds`` (its thread then runs on to its end).
        """
        if self.pending >= self._max_jobs:
            raise ApiError(
                429, f"{self.pending} requests are being prepared; try again in 1 s", code="busy", retry_after=1
            )
        self.pending += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        future.add_done_callback(self._done)
        try:
            return await asyncio.wait_for(asyncio.shield(future), self._seconds)
        except TimeoutError:
            raise ApiError(
                400, f"preparing the prompt took over {self._seconds:g} s; shorten it", code="too_slow"
            ) from None

    def close(self) -> None:
        """Shut the pool down; work that has not started is cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _done(self, future: asyncio.Future[T]) -> None:
        self.pending -= 1
        if not future.cancelled():
            future.exception()  # mark as retrieved: the client of this work may have left
