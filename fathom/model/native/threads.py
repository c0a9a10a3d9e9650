"""How many threads a step takes: all of them, or one while other programs hold the processors.

Threads that meet many times in a step wait whenever one of them is not running, and no way of waiting saves that. A
thread that waits in vain gives its processor away, so it shows in its processor time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from fathom.kernels.native.library import ThreadPool

_BUSY_SHARE = 0.6  # of a step's time that the calling thread computes or spins where the processors are free
_WATCHED = 8  # steps whose times count together
_STEPS_ALONE = 128  # with one thread, before all are tried again


class StepThreads:
    """Pools of one and of ``threads`` threads, and which of them the next step takes."""

    def __init__(self, threads: int) -> None:
        self.all, self._alone = ThreadPool(threads), ThreadPool(1)
        self._steps = 0
        self._wall = self._busy = 0.0
        self._left_alone = 0

    @property
    def current(self) -> ThreadPool:
        """The pool of the next step."""
        return self._alone if self._left_alone else self.all

    @contextmanager
    def step(self) -> Iterator[int]:
        """Give the pool for one step, whose times are taken."""
        pool = self.current
        wall, busy = time.perf_counter(), time.thread_time()
        yield pool.pointer
        if pool.threads == 1:
            self._left_alone = max(0, self._left_alone - 1)
            return
        self.observe(time.perf_counter() - wall, time.thread_time() - busy)

    def observe(self, wall: float, busy: float) -> None:
        """Take a step's seconds and those in which the calling thread ran."""
        self._steps += 1
        self._wall += wall
        self._busy += busy
        if self._steps < _WATCHED:
            return
        if self._busy < _BUSY_SHARE * self._wall:
            self._left_alone = _STEPS_ALONE
        self._steps, self._wall, self._busy = 0, 0.0, 0.0
