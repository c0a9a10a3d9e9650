"""Threads for the CPU work before generation: templates, tokenization, images, grammars."""

from __future__ import annotations

import asyncio
import threading
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
    """A thread pool with a limit on pending work and a timeout for each piece; ``memory`` bounds the bodies at work."""

    def __init__(self, *, threads: int, max_jobs: int, seconds: float, body_memory: int) -> None:
        self.memory = BodyMemory(body_memory)
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
