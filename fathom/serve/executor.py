"""Threads for the CPU work before generation: templates, tokenization, images, grammars."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fathom.serve.errors import ApiError

T = TypeVar("T")
SMALL_BODY_BYTES = 32_768
"""Bodies up to this size are parsed on the event loop: faster than handing them to a thread."""


class BodyMemory:
    """Bounds what the bodies of all requests in progress take together, in bytes. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.lock = threading.Lock()

    def hold(self) -> HeldBody:
        """Return the share of one more body, of which nothing is received yet."""
        return HeldBody(self)


class HeldBody:
    """What one request's body takes, as received and as parsed, among those of all."""

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self._nbytes = 0
        self._released = False

    def add(self, nbytes: int) -> None:
        """Count ``nbytes`` more, or less where it is negative; nothing once it was released.

        Raises:
            ApiError: 429, all bodies together would take too much; a small one is never refused.
        """
        memory = self._memory
        with memory.lock:
            if self._released:
                return
            small = nbytes <= 0 or self._nbytes + nbytes <= SMALL_BODY_BYTES
            if not small and memory.nbytes + nbytes > memory.max_bytes:
                raise ApiError(
                    429,
                    f"body: the bodies of requests in progress take {memory.nbytes} bytes of {memory.max_bytes}; "
                    "try again in 1 s",
                    code="busy",
                    retry_after=1,
                )
            memory.nbytes += nbytes
            self._nbytes += nbytes

    def release(self) -> None:
        """Count nothing of it any more."""
        with self._memory.lock:
            self._released = True
            self._memory.nbytes -= self._nbytes
            self._nbytes = 0


class PreprocessExecutor:
    """A thread pool that bounds the pending work and the time of each piece; ``memory`` bounds the bodies at work."""

    def __init__(self, *, threads: int, max_jobs: int, seconds: float, body_memory: int) -> None:
        self.memory = BodyMemory(body_memory)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="fathom-serve")
        self._max_jobs = max_jobs
        self._seconds = seconds
        self.pending = 0

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread and return what it returns; work that nobody waits for any more does not begin.

        Raises:
            ApiError: 429, ``max_jobs`` are pending; 400, it took over ``seconds`` (its thread then runs on to its end).
        """
        if self.pending >= self._max_jobs:
            raise ApiError(
                429, f"{self.pending} requests are being prepared; try again in 1 s", code="busy", retry_after=1
            )
        self.pending += 1
        began: list[float] = []

        def timed() -> T:
            began.append(time.monotonic())
            return work()

        job = self._threads.submit(timed)
        future = asyncio.wrap_future(job)
        future.add_done_callback(self._done)
        try:
            return await self._within_seconds(future, began)
        finally:
            job.cancel()  # if it waits for a thread still

    async def _within_seconds(self, future: asyncio.Future[T], began: list[float]) -> T:
        """Wait for ``future``, at most ``seconds`` from when its work ``began``, which holds that time then."""
        left = self._seconds
        while left > 0:
            await asyncio.wait([future], timeout=left)
            if future.done():
                return future.result()
            left = self._seconds if not began else began[0] + self._seconds - time.monotonic()
        raise ApiError(400, f"preparing the prompt took over {self._seconds:g} s; shorten it", code="too_slow")

    def close(self) -> None:
        """Shut the pool down; work that has not started is cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _done(self, future: asyncio.Future[T]) -> None:
        self.pending -= 1
        if not future.cancelled():
            future.exception()  # mark as retrieved: the client of this work may have left
