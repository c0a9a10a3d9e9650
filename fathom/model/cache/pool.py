"""A pool of pages: one allocation that every request's numbers live in, in pages of a few tokens each.

P tokens of a page, G key-value heads, K head width, X = G K numbers of one token, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fathom.spec import CacheFormat, GroupedQueryAttention, ModelSpec


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


class PagePool:
    """The pages of all layers. Which request owns which page is not known here.

    ``parts`` says what one token leaves in a layer: (heads, width) of keys and values, or of the one latent.
    ``extra_layers`` are those of MTP modules, after the model's own.
    """

    def __init__(
        self,
        layers: Sequence[tuple[Pages, ...]],
        parts: Sequence[tuple[int, int]],
        *,
        page_size: int,
        num_pages: int,
        device: torch.device,
    ) -> None:
        self.layers = tuple(layers)
        self.parts = tuple(parts)
        self.page_size = page_size
        self.num_pages = num_pages
        self.device = device
        self.scratch = tuple(Scratch() for _ in self.parts)

    @classmethod
    def allocate(
        cls,
        spec: ModelSpec,
        *,
        pages: int,
        page_size: int,
        extra_layers: int = 0,
        cache_format: CacheFormat = "plain",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> PagePool:
        """Reserve ``pages`` pages of ``page_size`` tokens in every layer."""
        attention, where = spec.attention, torch.device(device)
        if isinstance(attention, GroupedQueryAttention):
            parts = [(attention.num_kv_heads, attention.head_dim)] * 2
        else:
            parts = [(1, attention.kv_lora_rank + attention.qk_rope_head_dim)]
        if cache_format != "plain":
            raise NotImplementedError(cache_format)
        layers = [
            tuple(PlainPages(pages, page_size, heads * width, device=where, dtype=dtype) for heads, width in parts)
            for _ in range(spec.num_hidden_layers + extra_layers)
        ]
        return cls(layers, parts, page_size=page_size, num_pages=pages, device=where)

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        return sum(pages.nbytes for layer in self.layers for pages in layer)

    @property
    def bytes_per_token(self) -> float:
        """Bytes one token takes in all layers."""
        return self.nbytes / (self.num_pages * self.page_size)

    def clear(self, pages: Sequence[int]) -> None:
        """Overwrite pages with zeros, so that what a broken request left cannot reach another."""
        pages_N = torch.tensor(list(pages), device=self.device)
        for layer in self.layers:
            for part in layer:
                part.clear(pages_N)
