"""Pages of keys, values or latents in the model's dtype, and the interface of pages in any format.

X elements of one token, Z tokens of a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fathom.model.cache.lazy_zeros import lazy_zeros


class Pages(Protocol):
    """The keys, values or latents of one layer, for every token of the pool.

    Pages are contiguous, so that slot ``page * page_size + offset`` is a row.
    """

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        ...

    def write(self, slots_N: Tensor, rows_NX: Tensor) -> None:
        """Write rows into their slots. Each slot must belong to one request; shared pages are never written."""
        ...

    def read(self, pages: slice | Tensor, scratch: Scratch) -> Tensor:
        """Return whole pages as rows (pages x P, X): a view where they are contiguous and need no decoding.

        Otherwise the rows are in ``scratch``, valid until it is used again.
        """
        ...

    def clear(self, pages_N: Tensor) -> None:
        """Overwrite pages with zeros."""
        ...


class Scratch:
    """A buffer that grows to the largest read and is reused by every layer."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def take(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return an uninitialised tensor of this shape; it overwrites what was taken before."""
        count = 1
        for size in shape:
            count *= size
        if self._buffer is None or self._buffer.numel() < count or self._buffer.dtype != like.dtype:
            self._buffer = like.new_empty(count)
        return self._buffer[:count].view(shape)


class PlainPages:
    """Pages in the model's dtype."""

    def __init__(self, pages: int, page_size: int, width: int, *, device: torch.device, dtype: torch.dtype) -> None:
        # zeros, not empty: masked slots are multiplied by 0, so their contents must be finite
        self.rows_NX = lazy_zeros((pages * page_size, width), device=device, dtype=dtype)
        self._page_size = page_size

    @property
    def nbytes(self) -> int:
        """Bytes allocated; the operating system commits them when they are first written."""
        return self.rows_NX.nbytes

    def write(self, slots_N: Tensor, rows_NX: Tensor) -> None:
        """Copy rows into their slots."""
        self.rows_NX.index_copy_(0, slots_N, rows_NX)

    def read(self, pages: slice | Tensor, scratch: Scratch) -> Tensor:
        """Return a view of contiguous pages, a gathered copy of others."""
        width = self.rows_NX.shape[1]
        if isinstance(pages, slice):
            return self.rows_NX[pages.start * self._page_size : pages.stop * self._page_size]
        rows = scratch.take((len(pages), self._page_size * width), self.rows_NX)
        torch.index_select(self.rows_NX.view(-1, self._page_size * width), 0, pages, out=rows)
        return rows.view(-1, width)

    def clear(self, pages_N: Tensor) -> None:
        """Overwrite pages with zeros."""
        self.rows_NX.view(-1, self._page_size, self.rows_NX.shape[1])[pages_N] = 0
