"""A decoding step over a page pool whose shapes are those of its bucket, whatever its sequences are.

X a row's numbers: its position, its slot, and its pages.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.errors import ContextError
from fathom.model.cache.attention_metadata import AttentionGroup, AttentionMetadata
from fathom.model.cache.paged import PagedLayerCache, SequenceChunk
from fathom.model.cache.pool import PagePool


def bucket(count: int) -> int:
    """Return the power of two that holds ``count``."""
    return 1 << (count - 1).bit_length()


def decoding_rows(chunks: Sequence[SequenceChunk], page_size: int) -> Tensor:
    """Lay out chunks of one new token each, (B, X) on the host; both are rounded up to a power of two.

    The last chunk is repeated to fill the rows: it writes what it has written. A row's pages are followed by its first,
    which no query sees.

    Raises:
        ContextError: a chunk of several tokens, or one whose first pages are gone.
    """
    if any(chunk.tokens != 1 or chunk.first for chunk in chunks):
        raise ContextError("chunks: only whole sequences with one new token each are decoded; use PagedStep")
    pages = bucket(max(-(-chunk.end // page_size) for chunk in chunks))
    rows = []
    for chunk in chunks:
        page, offset = divmod(chunk.start, page_size)
        held = list(chunk.pages[:pages])
        rows.append([chunk.start, chunk.pages[page] * page_size + offset, *held, *held[:1] * (pages - len(held))])
    return torch.tensor(rows + rows[-1:] * (bucket(len(rows)) - len(rows)), dtype=torch.int64)


class DecodingStep:
    """The ``KeyValueCache`` of one pass over ``decoding_rows``, which are on the pool's device by then.

    Everything that differs between steps of a bucket is in these numbers, so that a pass can be captured once and
    replayed: all sequences attend in one call, to the pages of the longest, under a mask. ``longest`` is the length of
    the longest after the step.
    """

    def __init__(self, pool: PagePool, rows_BX: Tensor, longest: int) -> None:
        self.pool, self.empty_slots = pool, 0
        self._longest, self._positions_B = longest, rows_BX[:, 0]
        self.slots_N = rows_BX[:, 1]
        self.tables: tuple[slice | Tensor, ...] = (rows_BX[:, 2:].flatten(),)
        self._keys = (rows_BX.shape[1] - 2) * pool.page_size
        self.layers = tuple(PagedLayerCache(self, layer) for layer in pool.layers)

    def max_length_after(self, tokens: int) -> int:
        """Return the length of the longest sequence after this step."""
        return self._longest

    def advance(self, tokens: int) -> AttentionMetadata:
        """Return the attention metadata of the step's tokens, (1, B)."""
        keys_S = torch.arange(self._keys, device=self.pool.device)
        mask_B1S = keys_S <= self._positions_B[:, None, None]
        group = AttentionGroup(1, self._keys, mask_B1S, causal=False, rows=slice(0, len(self._positions_B)))
        return AttentionMetadata(self._positions_B[None], (group,))
