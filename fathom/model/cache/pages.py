"""Pages of numbers as the model computes them, and what a pool asks of pages of any kind.

P tokens of a page, X numbers of one token, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Pages(Protocol):
    """One kind of number of one layer, for every token of the pool: keys, values or latents.

    The pages of the pool lie one behind another, so that slot ``page * page_size + offset`` is a row.
    """

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        ...

    def write(self, slots_N: Tensor, rows_NX: Tensor) -> None:
        """Put rows into their slots. Each slot must be owned by one request; sharing is resolved before."""
        ...

    def read(self, pages: slice | Tensor, scratch: Scratch) -> Tensor:
        """Return whole pages as rows (pages x P, X): a view where they lie together and need no decoding.

        Anything else is put into ``scratch``, and holds until the scratch is used again.
        """
        ...

    def clear(self, pages_N: Tensor) -> None:
        """Overwrite pages with zeros."""
        ...


class Scratch:
    """A buffer that grows to the largest read and is used again by the next, layer after layer."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def take(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return uninitialised room of this shape; what was taken before may be overwritten."""
        count = 1
        for size in shape:
            count *= size
        if self._buffer is None or self._buffer.numel() < count or self._buffer.dtype != like.dtype:
            self._buffer = like.new_empty(count)
        return self._buffer[:count].view(shape)


class PlainPages:
    """Numbers as the model computes them."""

    def __init__(self, pages: int, page_size: int, width: int, *, device: torch.device, dtype: torch.dtype) -> None:
        # zeros, not empty: masked slots are multiplied by 0, and what lies there must be finite
        self._rows_NX = torch.zeros(pages * page_size, width, device=device, dtype=dtype)
        self._page_size = page_size

    @property
    def nbytes(self) -> int:
        """Bytes reserved; the operating system gives them when they are first written."""
        return self._rows_NX.nbytes

    def write(self, slots_N: Tensor, rows_NX: Tensor) -> None:
        """Copy rows into their slots."""
        self._rows_NX.index_copy_(0, slots_N, rows_NX)

    def read(self, pages: slice | Tensor, scratch: Scratch) -> Tensor:
        """Return a view of pages that lie together, a gathered copy of others."""
        width = self._rows_NX.shape[1]
        if isinstance(pages, slice):
            return self._rows_NX[pages.start * self._page_size : pages.stop * self._page_size]
        rows = scratch.take((len(pages), self._page_size * width), self._rows_NX)
        torch.index_select(self._rows_NX.view(-1, self._page_size * width), 0, pages, out=rows)
        return rows.view(-1, width)

    def clear(self, pages_N: Tensor) -> None:
        """Overwrite pages with zeros."""
        self._rows_NX.view(-1, self._page_size, self._rows_NX.shape[1])[pages_N] = 0
