"""Who holds which page of the pool, and which pages are kept because their content may be wanted again.

Every page is exactly one of free; owned, by one or more sequences; or cached: held by none, but known by the name of
its content (``prefix``). Owned pages may be named too: then others may share them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from fathom.engine.free_runs import FreeRuns


class PageAllocator:
    """Counts the holders of each page. What a page holds is not known here, only its name.

    Cached pages are evicted, the longest unused first and children before parents, when free ones run out: sequences
    hold a page's parents as long as the page and give it back before them, so that the order of giving back is right.
    """

    def __init__(self, pages: int) -> None:
        self._holders = [0] * pages
        self._names: list[bytes | None] = [None] * pages
        self._page_by_hash: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # the longest unused first
        self._free = FreeRuns(pages)

    @property
    def total(self) -> int:
        """Pages of the pool."""
        return len(self._holders)

    @property
    def available(self) -> int:
        """Pages that can be taken: free ones, and cached ones after eviction."""
        return len(self._free) + len(self._cached)

    @property
    def cached(self) -> int:
        """Pages kept only for their content."""
        return len(self._cached)

    @property
    def owned(self) -> int:
        """Pages that sequences hold."""
        return self.total - self.available

    def take(self, count: int, after: int | None = None) -> list[int]:
        """Take pages for a sequence whose last page is ``after``: those right behind it where they are free.

        Neighbouring pages are read in place. ``count`` must be available.
        """
        assert count <= self.available, f"{count} pages wanted, {self.available} available"
        while len(self._free) < count:
            self._evict()
        pages: list[int] = []
        while len(pages) < count:
            left = count - len(pages)
            run_start = start = self.total if after is None else after + 1
            run_end = self._free.end_of(run_start)
            if run_end is None:
                run_start, run_end = self._free.longest()
                start = self._start_within(run_start, run_end, left)
            end = min(start + left, run_end)
            self._free.take(run_start, start, end)
            pages += range(start, end)
            after = end - 1
        for page in pages:
            self._holders[page] = 1
        return pages

    def find(self, names: Iterable[bytes]) -> list[int]:
        """Return the pages of the longest beginning of ``names`` that are known; they are not taken yet."""
        pages = []
        for name in names:
            page = self._page_by_hash.get(name)
            if page is None:
                break
            pages.append(page)
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """Hold pages that were found."""
        for page in pages:
            self._holders[page] += 1
            self._cached.pop(page, None)

    def idle(self, pages: Iterable[int]) -> int:
        """Count the pages among these that nobody holds."""
        return sum(not self._holders[page] for page in pages)

    def name(self, page: int, name: bytes) -> int:
        """Name a page that is now full, and return the page to go on with.

        Where another page has the name already, that one is shared instead and this one is free again.
        """
        known = self._page_by_hash.setdefault(name, page)
        if known == page:
            self._names[page] = name
            return page
        self.share([known])
        self.release([page])
        return known

    def release(self, pages: Sequence[int]) -> None:
        """Give back pages, in the order of their tokens: named ones stay cached once nobody holds them."""
        for page in reversed(pages):
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if self._names[page] is None:
                self._free.free(page)
            else:
                self._cached[page] = None

    def private(self, pages: Iterable[int]) -> list[int]:
        """Return those of a sequence's pages that would be free if it gave them back."""
        return [page for page in pages if self._holders[page] == 1 and self._names[page] is None]

    def freeable_by(self, page_tables: Iterable[Sequence[int]]) -> int:
        """Count the pages that would become available if all of these sequences gave theirs back."""
        counts = Counter(page for pages in page_tables for page in pages)
        return sum(self._holders[page] == count for page, count in counts.items())

    def forget(self) -> None:
        """Forget all names and free the cached pages."""
        while self._cached:
            self._evict()
        for page in self._page_by_hash.values():
            self._names[page] = None
        self._page_by_hash.clear()

    def leaked(self, page_tables: Iterable[Sequence[int]]) -> int:
        """Count the pages held by none of the sequences there are."""
        return self.owned - len({page for pages in page_tables for page in pages})

    def verify(self, page_tables: Iterable[Sequence[int]]) -> None:
        """Check that all books agree, given the pages of every sequence there is; ``AssertionError`` where not."""
        counts = Counter(page for pages in page_tables for page in pages)
        free = self._free.pages()
        for page, held in enumerate(self._holders):
            name = self._names[page]
            assert held == counts[page], f"page {page}: {held} holders counted, {counts[page]} hold it"
            assert name is None or self._page_by_hash[name] == page, f"page {page}: another has its name"
            states = (page in free, held > 0, page in self._cached)
            assert sum(states) == 1, f"page {page}: (free, owned, cached) is {states}"
            assert not states[2] or name is not None, f"page {page}: cached without a name"
            assert not states[0] or name is None, f"page {page}: free with a name"
        assert len(self._free) == len(free), f"{len(self._free)} free pages counted, there are {len(free)}"
        assert len(self._page_by_hash) == sum(name is not None for name in self._names), "a name without a page"

    def _evict(self) -> None:
        page, _ = self._cached.popitem(last=False)
        name = self._names[page]
        assert name is not None
        del self._page_by_hash[name]
        self._names[page] = None
        self._free.free(page)

    def _start_within(self, start: int, end: int, count: int) -> int:
        """Choose where in a free run to start with ``count`` pages; a sequence before it keeps half of the run."""
        if start and self._holders[start - 1]:
            start += max(min((end - start) // 2, end - start - count), 0)
        return start
