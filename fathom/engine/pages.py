"""The page allocator: reference counts of the pool's pages, and the prefix cache.

Every page is exactly one of free; used, by one or more sequences; or cached: referenced by none, but registered under
its block hash (``block_hash``). Used pages may be registered too: then other sequences can share them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from fathom.engine.free_runs import FreeRuns


class PageAllocator:
    """Counts the references to each page, and knows the block hash of its content where one is registered.

    Cached pages are evicted, the least recently used first and children before parents, when free ones run out:
    sequences reference a page's parents as long as the page and release it before them.
    """

    def __init__(self, pages: int) -> None:
        self._ref_counts = [0] * pages
        self._hashes: list[bytes | None] = [None] * pages
        self._page_by_hash: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # the longest unused first
        self._free = FreeRuns(pages)

    @property
    def total(self) -> int:
        """Pages of the pool."""
        return len(self._ref_counts)

    @property
    def available(self) -> int:
        """Pages that can be taken: free ones, and cached ones after eviction."""
        return len(self._free) + len(self._cached)

    @property
    def cached(self) -> int:
        """Pages kept only for their content."""
        return len(self._cached)

    @property
    def num_used(self) -> int:
        """Pages that sequences reference."""
        return self.total - self.available

    def allocate(self, count: int, after: int | None = None) -> list[int]:
        """Allocate pages for a sequence whose last page is ``after``: those right behind it where they are free.

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
            self._ref_counts[page] = 1
        return pages

    def match_prefix(self, hashes: Iterable[bytes]) -> list[int]:
        """Return the pages of the longest registered prefix of the block hashes; they are not referenced yet."""
        pages = []
        for block_hash in hashes:
            page = self._page_by_hash.get(block_hash)
            if page is None:
                break
            pages.append(page)
        return pages

    def acquire(self, pages: Sequence[int]) -> None:
        """Add a reference to each of the pages, which may be cached."""
        for page in pages:
            self._ref_counts[page] += 1
            self._cached.pop(page, None)

    def count_unreferenced(self, pages: Iterable[int]) -> int:
        """Count the pages among these that no sequence references."""
        return sum(not self._ref_counts[page] for page in pages)

    def register_hash(self, page: int, block_hash: bytes) -> int:
        """Register a full page under its block hash, and return the page that the sequence references from now on.

        Where another page has the hash already, that one is shared instead and this one is freed.
        """
        known = self._page_by_hash.setdefault(block_hash, page)
        if known == page:
            self._hashes[page] = block_hash
            return page
        self.acquire([known])
        self.release([page])
        return known

    def release(self, pages: Sequence[int]) -> None:
        """Drop a reference to each page, in the order of their tokens: without one, registered pages stay cached."""
        for page in reversed(pages):
            self._ref_counts[page] -= 1
            if self._ref_counts[page]:
                continue
            if self._hashes[page] is None:
                self._free.free(page)
            else:
                self._cached[page] = None

    def unshared(self, pages: Iterable[int]) -> list[int]:
        """Return those of a sequence's pages that would be free if it released them."""
        return [page for page in pages if self._ref_counts[page] == 1 and self._hashes[page] is None]

    def freeable_by(self, page_tables: Iterable[Sequence[int]]) -> int:
        """Count the pages that would become available if all of these sequences released theirs."""
        counts = Counter(page for pages in page_tables for page in pages)
        return sum(self._ref_counts[page] == count for page, count in counts.items())

    def forget(self) -> None:
        """Empty the prefix cache: drop all block hashes and free the cached pages."""
        while self._cached:
            self._evict()
        for page in self._page_by_hash.values():
            self._hashes[page] = None
        self._page_by_hash.clear()

    def leaked(self, page_tables: Iterable[Sequence[int]]) -> int:
        """Count the used pages that are in none of the page tables."""
        return self.num_used - len({page for pages in page_tables for page in pages})

    def verify(self, page_tables: Iterable[Sequence[int]]) -> None:
        """Check that all counts agree, given the page table of every sequence; ``AssertionError`` where not."""
        counts = Counter(page for pages in page_tables for page in pages)
        free = self._free.pages()
        for page, held in enumerate(self._ref_counts):
            block_hash = self._hashes[page]
            assert held == counts[page], f"page {page}: {held} references counted, there are {counts[page]}"
            assert block_hash is None or self._page_by_hash[block_hash] == page, f"page {page}: another has its hash"
            states = (page in free, held > 0, page in self._cached)
            assert sum(states) == 1, f"page {page}: (free, owned, cached) is {states}"
            assert not states[2] or block_hash is not None, f"page {page}: cached without a hash"
            assert not states[0] or block_hash is None, f"page {page}: free with a hash"
        assert len(self._free) == len(free), f"{len(self._free)} free pages counted, there are {len(free)}"
        assert len(self._page_by_hash) == sum(each is not None for each in self._hashes), "a hash without a page"

    def _evict(self) -> None:
        page, _ = self._cached.popitem(last=False)
        block_hash = self._hashes[page]
        assert block_hash is not None
        del self._page_by_hash[block_hash]
        self._hashes[page] = None
        self._free.free(page)

    def _start_within(self, start: int, end: int, count: int) -> int:
        """Choose where in a free run to start with ``count`` pages; a sequence before it keeps half of the run."""
        if start and self._ref_counts[start - 1]:
            start += max(min((end - start) // 2, end - start - count), 0)
        return start
