"""A step over a page pool: a packed batch of sequences at any positions, each with its own number of new tokens.

Z tokens of a page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fathom.errors import ContextError
from fathom.model.cache.attention_metadata import MAX_MASKED_KEYS, AttentionGroup, AttentionMetadata, attention_mask
from fathom.model.cache.pool import PagePool, Pages
from fathom.model.device import numbers_on

# Sequences with equally many new tokens attend in one call while padding and the number of keys stay below these.
_MOST_PADDING = 1.5
_MOST_KEYS = 65_536


class SequenceChunk(NamedTuple):
    """One sequence's tokens in a step: ``tokens`` new ones after ``start`` cached ones.

    ``pages`` hold its tokens from ``first`` on, a multiple of the page size: tokens outside the sliding window need no
    pages. They must have slots for the new tokens.
    """

    pages: Sequence[int]
    start: int
    tokens: int
    first: int = 0

    @property
    def end(self) -> int:
        """Tokens after the step."""
        return self.start + self.tokens


class PagedStep:
    """The ``KeyValueCache`` of one forward pass, whose tokens are the chunks' packed as (1, N).

    Neighbours with equally many new tokens attend in one call, so sort chunks by ``tokens``, then by length. A step is
    used for one pass.

    Layers of MTP modules leave the first ``empty_slots`` slots of a sequence unused: slot i holds position
    i - ``empty_slots``. There is no sliding window then.
    """

    def __init__(
        self,
        pool: PagePool,
        chunks: Sequence[SequenceChunk],
        *,
        window: int | None = None,
        first_layer: int = 0,
        empty_slots: int = 0,
    ) -> None:
        self.pool = pool
        self.chunks = tuple(chunks)
        self.window = window
        self.empty_slots = empty_slots
        for chunk in self.chunks:
            capacity = chunk.first + len(chunk.pages) * pool.page_size
            if chunk.end > capacity or chunk.first % pool.page_size or chunk.tokens < 1:
                raise ContextError(
                    f"chunks: pages for tokens {chunk.first} to {capacity} cannot hold {chunk.tokens} tokens after "
                    f"{chunk.start}; allocate its pages first"
                )
        self.device = pool.device
        self.slots_N = self._slots()
        self.tables: tuple[slice | Tensor, ...] = ()
        self.layers = tuple(PagedLayerCache(self, layer) for layer in pool.layers[first_layer:])

    def max_length_after(self, tokens: int) -> int:
        """Return the length of the longest sequence after this step."""
        return max(chunk.end for chunk in self.chunks)

    def advance(self, tokens: int) -> AttentionMetadata:
        """Return the attention metadata of the step's tokens.

        Raises:
            ContextError: ``tokens`` is not the chunks' total.
        """
        if tokens != sum(chunk.tokens for chunk in self.chunks):
            raise ContextError(
                f"tokens: {tokens} given for chunks of {sum(c.tokens for c in self.chunks)}; pack the chunks in order"
            )
        empty = self.empty_slots
        positions = [slot - empty for chunk in self.chunks for slot in range(chunk.start, chunk.end)]
        groups, tables, row = [], [], 0
        for group in self._groups():
            groups.append(self._attention_group(group, row))
            tables.append(self._table(group))
            row += len(group) * group[0].tokens
        self.tables = tuple(tables)
        return AttentionMetadata(numbers_on(self.device, [positions]), tuple(groups))

    def _slots(self) -> Tensor:
        size, slots = self.pool.page_size, []
        for chunk in self.chunks:
            for position in range(chunk.start, chunk.end):
                page, offset = divmod(position - chunk.first, size)
                slots.append(chunk.pages[page] * size + offset)
        return numbers_on(self.device, slots)

    def _groups(self) -> Iterator[list[SequenceChunk]]:
        group: list[SequenceChunk] = []
        held = longest = 0
        for chunk in self.chunks:
            keys = chunk.end - chunk.first
            longest, held = max(longest, keys), held + keys
            padded = (len(group) + 1) * longest
            alike = group and chunk.tokens == group[0].tokens
            if group and not (alike and padded <= _MOST_PADDING * held and padded <= _MOST_KEYS):
                yield group
                group, longest, held = [], keys, keys
            group.append(chunk)
        if group:
            yield group

    def _attention_group(self, group: Sequence[SequenceChunk], row: int) -> AttentionGroup:
        tokens, empty = group[0].tokens, self.empty_slots
        end = max(chunk.end - chunk.first for chunk in group)
        rows = slice(row, row + len(group) * tokens)
        aligned = all(chunk.end == group[0].end and chunk.first == group[0].first for chunk in group)
        windowed = self.window is not None and any(chunk.end - self.window > chunk.first for chunk in group)
        unmasked = tokens == 1 or group[0].start == group[0].first + empty or end - empty > MAX_MASKED_KEYS
        if aligned and not windowed and unmasked:
            return AttentionGroup(tokens, end - empty, None, causal=tokens > 1, rows=rows)
        keys_S = torch.arange(empty, end, device=self.device)
        queries_BT = numbers_on(self.device, [[chunk.start] for chunk in group])
        if tokens > 1:
            queries_BT = queries_BT + torch.arange(tokens, device=self.device)
        if self.window is None and not any(chunk.first for chunk in group):
            return AttentionGroup(tokens, end - empty, keys_S <= queries_BT[:, :, None], causal=False, rows=rows)
        keys_BS = numbers_on(self.device, [[chunk.first] for chunk in group]) + keys_S
        return AttentionGroup(tokens, end, attention_mask(queries_BT, keys_BS, self.window), causal=False, rows=rows)

    def _table(self, group: Sequence[SequenceChunk]) -> slice | Tensor:
        """Return a group's pages, each sequence's padded to the longest; a slice where they are contiguous."""
        size = self.pool.page_size
        count = max(-(-(chunk.end - chunk.first) // size) for chunk in group)
        pages: list[int] = []
        for chunk in group:
            pages += chunk.pages[:count]
            pages += [chunk.pages[0]] * (count - len(chunk.pages))
        if pages[-1] - pages[0] == len(pages) - 1 and pages == list(range(pages[0], pages[0] + len(pages))):
            return slice(pages[0], pages[0] + len(pages))
        return numbers_on(self.device, pages)


class PoolStep(Protocol):
    """What a layer needs of a step: the pool, the new tokens' slots, and the pages of each attention group."""

    pool: PagePool
    slots_N: Tensor
    tables: tuple[slice | Tensor, ...]
    empty_slots: int


class PagedLayerCache:
    """One layer of the pool in one step."""

    def __init__(self, step: PoolStep, layer: tuple[Pages, ...]) -> None:
        self._step, self._layer = step, layer

    def append(
        self, metadata: AttentionMetadata, *new_BTGW: Tensor
    ) -> Iterator[tuple[AttentionGroup, tuple[Tensor, ...]]]:
        """Write the step's tokens, then yield each group with what its pages hold: (B, G, S, W) per kind."""
        step, pool, empty = self._step, self._step.pool, self._step.empty_slots
        for pages, new in zip(self._layer, new_BTGW, strict=True):
            pages.write(step.slots_N, new[0].flatten(1))
        for group, table in zip(metadata.groups, step.tables, strict=True):
            assert group.rows is not None
            batch = (group.rows.stop - group.rows.start) // group.tokens
            seen = [
                pages.read(table, scratch).view(batch, -1, heads, width)[:, empty : empty + group.end].transpose(1, 2)
                for pages, scratch, (heads, width) in zip(self._layer, pool.scratch, pool.kv_shapes, strict=True)
            ]
            yield group, tuple(seen)
