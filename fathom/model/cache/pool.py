"""A page pool: one allocation for the KV cache of all requests, in pages of a few tokens each.

Z tokens of a page.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fathom.model.cache.pages import Pages, PlainPages, Scratch
from fathom.model.cache.quantized import QuantizedPages
from fathom.model.device import numbers_on
from fathom.plan.cache_rows import quantized_rows
from fathom.spec import CacheFormat, GroupedQueryAttention, ModelSpec

__all__ = ["PagePool", "Pages"]


class PagePool:
    """The pages of all layers. Their assignment to requests is the engine's.

    ``kv_shapes`` are the (heads, width) of what one token stores in a layer: keys and values, or the one latent.
    ``extra_layers`` are those of MTP modules, after the model's own.
    """

    def __init__(
        self,
        layers: Sequence[tuple[Pages, ...]],
        kv_shapes: Sequence[tuple[int, int]],
        *,
        page_size: int,
        num_pages: int,
        device: torch.device,
    ) -> None:
        self.layers = tuple(layers)
        self.kv_shapes = tuple(kv_shapes)
        self.page_size = page_size
        self.num_pages = num_pages
        self.device = device
        self.scratch = tuple(Scratch() for _ in self.kv_shapes)

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
        """Allocate ``pages`` pages of ``page_size`` tokens in every layer.

        ``dtype`` is the model's: that of plain pages, and of what quantized ones return.
        """
        attention, where = spec.attention, torch.device(device)
        if isinstance(attention, GroupedQueryAttention):
            kv_shapes = [(attention.num_kv_heads, attention.head_dim)] * 2
        else:
            kv_shapes = [(1, attention.kv_lora_rank + attention.qk_rope_head_dim)]

        def layer() -> tuple[Pages, ...]:
            if cache_format == "plain":
                widths = (heads * width for heads, width in kv_shapes)
                return tuple(PlainPages(pages, page_size, width, device=where, dtype=dtype) for width in widths)
            rows = quantized_rows(attention, cache_format)
            return tuple(QuantizedPages(pages, page_size, row, device=where, dtype=dtype) for row in rows)

        layers = [layer() for _ in range(spec.num_hidden_layers + extra_layers)]
        return cls(layers, kv_shapes, page_size=page_size, num_pages=pages, device=where)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(pages.nbytes for layer in self.layers for pages in layer)

    @property
    def bytes_per_token(self) -> float:
        """Bytes per token, over all layers."""
        return self.nbytes / (self.num_pages * self.page_size)

    def clear(self, pages: Sequence[int]) -> None:
        """Overwrite pages with zeros, so that non-finite values of one request cannot reach another."""
        pages_N = numbers_on(self.device, list(pages))
        for layer in self.layers:
            for stored in layer:
                stored.clear(pages_N)
