"""Free pages as runs: the pages that a search of the whole pool would choose, at a cost that hardly grows with it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.engine.free_runs import FreeRuns
from fathom.engine.pages import PageAllocator


class Searched:
    """The pages of a pool without a prefix cache, chosen by a search of every page."""

    def __init__(self, pages: int) -> None:
        self.taken = bytearray(pages)

    def take(self, count: int, after: int | None) -> list[int]:
        pages: list[int] = []
        for left in range(count, 0, -1):
            page = len(self.taken) if after is None else after + 1
            if page >= len(self.taken) or self.taken[page]:
                runs = [run.span() for run in re.finditer(b"\0+", self.taken)]
                page, end = max(runs, key=lambda span: span[1] - span[0])
                if page:
                    page += max(min((end - page) // 2, end - page - left), 0)
            self.taken[page] = 1
            pages.append(page)
            after = page
        return pages

    def release(self, pages: list[int]) -> None:
        for page in pages:
            self.taken[page] = 0


@settings(max_examples=150, deadline=None)
@given(deeds=st.lists(st.tuples(st.integers(0, 99), st.integers(1, 6)), max_size=60), size=st.integers(1, 40))
def test_the_pages_taken_are_those_that_a_search_of_the_whole_pool_chooses(
    deeds: list[tuple[int, int]], size: int
) -> None:
    pages, searched, held = PageAllocator(size), Searched(size), list[list[int]]()
    for which, count in deeds:
        if which % 3 == 0 and held:
            released = held.pop(which % len(held))
            pages.release(released)
            searched.release(released)
        elif count <= pages.available:
            grown = held[which % len(held)] if held and which % 3 == 1 else []
            taken = pages.allocate(count, grown[-1] if grown else None)
            assert taken == searched.take(count, grown[-1] if grown else None)
            if grown:
                grown += taken
            else:
                held.append(taken)
        pages.verify(held)


def test_runs_join_when_the_page_between_them_is_freed() -> None:
    runs = FreeRuns(9)
    runs.take(0, 0, 9)
    for page in (1, 3, 2, 7, 5, 8):
        runs.free(page)
    assert runs.longest() == (1, 4)
    assert (runs.end_of(1), runs.end_of(5), runs.end_of(7), runs.end_of(2)) == (4, 6, 9, None)
    runs.free(4)
    assert runs.longest() == (1, 6)
    runs.free(6)
    assert runs.longest() == (1, 9)
    assert (len(runs), runs.pages()) == (8, set(range(1, 9)))


def calls(work: Callable[[], object]) -> int:
    """Count the calls, of Python's functions and of built-in ones, that some work takes."""
    counted = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return counted


def test_a_page_of_a_fragmented_pool_costs_a_few_calls_and_the_heap_stays_as_small_as_the_runs() -> None:
    pages = PageAllocator(100_000)
    everything = pages.allocate(100_000)
    pages.release(everything[::2])
    assert calls(lambda: pages.allocate(1)) < 40
    assert calls(lambda: pages.allocate(100)) < 100 * 20
    churned = [pages.allocate(3) for _ in range(200)]
    assert calls(lambda: [pages.release(each) for each in churned]) < 600 * 20
    for _ in range(3):
        again = pages.allocate(40_000)
        pages.release(again)
    assert len(pages._free._by_length) <= 2 * len(pages._free._end_by_start) + 64
