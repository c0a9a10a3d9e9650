"""Threads of a step where the processors are free, and where other programs hold them."""

from __future__ import annotations

import pytest

from fathom.model.native.threads import StepThreads

pytestmark = pytest.mark.usefixtures("native")


def observe(threads: StepThreads, steps: int, busy: float) -> None:
    for _ in range(steps):
        threads.observe(0.01, 0.01 * busy)


def test_all_threads_run_while_they_are_seldom_kept_waiting() -> None:
    threads = StepThreads(3)
    observe(threads, 64, busy=0.9)
    assert threads.current.threads == 3


def test_one_thread_runs_alone_for_a_while_where_others_hold_the_processors() -> None:
    threads = StepThreads(3)
    observe(threads, 16, busy=0.2)
    alone = 0
    while threads.current.threads == 1:
        with threads.step():
            alone += 1
    assert alone > 50
    observe(threads, 64, busy=0.9)
    assert threads.current.threads == 3
