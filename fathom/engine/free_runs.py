"""The free pages of a pool as runs of neighbours."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

_MIN_HEAP_ENTRIES = 64


class FreeRuns:
    """Free pages as maximal runs, found by their ends and by their length.

    Taking a page or freeing one costs O(log n) amortised in the number of runs. The heap of runs by length is cleaned
    lazily: an entry counts while its run exists as it says.
    """

    def __init__(self, pages: int) -> None:
        self._end_by_start = {0: pages} if pages else {}
        self._start_by_end = {pages: 0} if pages else {}
        self._by_length = [(-pages, 0)] if pages else []
        self._count = pages

    def __len__(self) -> int:
        """Count the free pages."""
        return self._count

    def pages(self) -> set[int]:
        """Return all free pages, for checks."""
        return {page for start, end in self._end_by_start.items() for page in range(start, end)}

    def end_of(self, start: int) -> int | None:
        """Return the end of the run that begins with page ``start``; None where none does."""
        return self._end_by_start.get(start)

    def longest(self) -> tuple[int, int]:
        """Return the start and end of the longest run, of equal ones the first; there must be a free page."""
        while True:
            length, start = self._by_length[0]
            end = self._end_by_start.get(start)
            if end is not None and end - start == -length:
                return start, end
            heappop(self._by_length)

    def take(self, run_start: int, start: int, end: int) -> None:
        """Take pages ``start`` to ``end``, which lie in the run that begins with ``run_start``."""
        run_end = self._end_by_start.pop(run_start)
        del self._start_by_end[run_end]
        self._count -= end - start
        self._add(run_start, start)
        self._add(end, run_end)

    def free(self, page: int) -> None:
        """Add one page, joining the runs beside it."""
        start, end = page, page + 1
        before, after = self._start_by_end.pop(start, None), self._end_by_start.pop(end, None)
        if before is not None:
            del self._end_by_start[before]
            start = before
        if after is not None:
            del self._start_by_end[after]
            end = after
        self._count += 1
        self._add(start, end)

    def _add(self, start: int, end: int) -> None:
        if start >= end:
            return
        self._end_by_start[start], self._start_by_end[end] = end, start
        heappush(self._by_length, (start - end, start))
        if len(self._by_length) > 2 * len(self._end_by_start) + _MIN_HEAP_ENTRIES:
            self._by_length = [(first - last, first) for first, last in self._end_by_start.items()]
            heapify(self._by_length)
