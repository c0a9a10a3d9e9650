"""A pool of pages: one allocation that every request's numbers live in, in pages of a few tokens each.

P tokens of a page, G key-value heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fathom.model.cache.pages import Pages, PlainPages, Scratch
from fathom.model.cache.quantized import QuantizedPages
from fathom.plan.cache_rows import quantized_rows
from fathom.spec import CacheFormat, GroupedQueryAttention, ModelSpec

__all__ = ["PagePool", "Pages", "Scratch"]


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
        """Reserve ``pages`` pages of ``page_size`` tokens in every layer.

        ``dtype`` is the model's: what plain pages hold, and what quantized ones return.
        """
        attention, where = spec.attention, torch.device(device)
        if isinstance(attention, GroupedQueryAttention):
            parts = [(attention.num_kv_heads, attention.head_dim)] * 2
        else:
            parts = [(1, attention.kv_lora_rank + attention.qk_rope_head_dim)]

        def layer() -> tuple[Pages, ...]:
            if cache_format == "plain":
                widths = (heads * width for heads, width in parts)
                return tuple(PlainPages(pages, page_size, width, device=where, dtype=dtype) for width in widths)
            rows = quantized_rows(attention, cache_format)
            return tuple(QuantizedPages(pages, page_size, row, device=where, dtype=dtype) for row in rows)

        layers = [layer() for _ in range(spec.num_hidden_layers + extra_layers)]
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
