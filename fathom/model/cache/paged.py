"""One step over a pool: sequences at any positions, each with its own number of new tokens, laid end to end.

B sequences of a part, T new tokens of each, N tokens of the step, S keys, P tokens of a page, G heads, K width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.errors import ContextError
from fathom.model.cache.attention_metadata import MAX_MASKED_KEYS, AttentionGroup, AttentionMetadata, attention_mask
from fathom.model.cache.pool import PagePool, Pages

# Sequences of one length of step attend together while padding them wastes little and their keys stay this few.
_MOST_PADDING = 1.5
_MOST_KEYS = 65_536


@dataclass(frozen=True, slots=True)
class SequenceChunk:
    """One sequence's share of a step: ``tokens`` new tokens after ``start``.

    ``pages`` hold its tokens from ``first`` on, a multiple of the page size: what a window has left behind needs no
    pages. They must reach as far as the new tokens.
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
    """The cache of one forward pass: ``Decoder.forward`` takes it with the slices' tokens laid end to end, (1, N).

    Neighbours with equally many new tokens attend in one call, so give slices in order of ``tokens`` and, within
    it, of length. The step is used once; the pool stays.

    Layers of MTP modules begin with ``empty_slots`` slots that nothing is written to or read from: what is in slot i
    stands at position i - ``empty_slots``. There is no window then.
    """

    def __init__(
        self,
        pool: PagePool,
        slices: Sequence[SequenceChunk],
        *,
        window: int | None = None,
        first_layer: int = 0,
        empty_slots: int = 0,
    ) -> None:
        self.pool = pool
        self.slices = tuple(slices)
        self.window = window
        self.empty_slots = empty_slots
        for piece in self.slices:
            room = piece.first + len(piece.pages) * pool.page_size
            if piece.end > room or piece.first % pool.page_size or piece.tokens < 1:
                raise ContextError(
                    f"slices: pages for tokens {piece.first} to {room} cannot take {piece.tokens} tokens after "
                    f"{piece.start}; give it its pages first"
                )
        self.device = pool.device
        self.slots_N = self._slots()
        self.tables: tuple[slice | Tensor, ...] = ()
        self.layers = tuple(_PagedLayerCache(self, layer) for layer in pool.layers[first_layer:])

    def reach(self, tokens: int) -> int:
        """Return the most tokens any sequence will have."""
        return max(piece.end for piece in self.slices)

    def advance(self, tokens: int) -> AttentionMetadata:
        """Say where the step's tokens stand and what they may attend to.

        Raises:
            ContextError: not as many tokens as the slices have together.
        """
        if tokens != sum(piece.tokens for piece in self.slices):
            raise ContextError(
                f"tokens: {tokens} given for slices of {sum(s.tokens for s in self.slices)}; lay them end to end"
            )
        empty = self.empty_slots
        positions = [slot - empty for piece in self.slices for slot in range(piece.start, piece.end)]
        parts, tables, row = [], [], 0
        for group in self._groups():
            parts.append(self._part(group, row))
            tables.append(self._table(group))
            row += len(group) * group[0].tokens
        self.tables = tuple(tables)
        return AttentionMetadata(torch.tensor([positions], device=self.device), tuple(parts))

    def _slots(self) -> Tensor:
        size, slots = self.pool.page_size, []
        for piece in self.slices:
            for position in range(piece.start, piece.end):
                page, offset = divmod(position - piece.first, size)
                slots.append(piece.pages[page] * size + offset)
        return torch.tensor(slots, device=self.device)

    def _groups(self) -> Iterator[list[SequenceChunk]]:
        group: list[SequenceChunk] = []
        held = longest = 0
        for piece in self.slices:
            keys = piece.end - piece.first
            longest, held = max(longest, keys), held + keys
            padded = (len(group) + 1) * longest
            alike = group and piece.tokens == group[0].tokens
            if group and not (alike and padded <= _MOST_PADDING * held and padded <= _MOST_KEYS):
                yield group
                group, longest, held = [], keys, keys
            group.append(piece)
        if group:
            yield group

    def _part(self, group: Sequence[SequenceChunk], row: int) -> AttentionGroup:
        tokens, empty = group[0].tokens, self.empty_slots
        end = max(piece.end - piece.first for piece in group)
        rows = slice(row, row + len(group) * tokens)
        alike = all(piece.end == group[0].end and piece.first == group[0].first for piece in group)
        windowed = self.window is not None and any(piece.end - self.window > piece.first for piece in group)
        unmasked = tokens == 1 or group[0].start == group[0].first + empty or end - empty > MAX_MASKED_KEYS
        if alike and not windowed and unmasked:
            return AttentionGroup(tokens, end - empty, None, causal=tokens > 1, rows=rows)
        keys_S = torch.arange(empty, end, device=self.device)
        queries_BT = torch.tensor([[piece.start] for piece in group], device=self.device)
        if tokens > 1:
            queries_BT = queries_BT + torch.arange(tokens, device=self.device)
        if self.window is None and not any(piece.first for piece in group):
            return AttentionGroup(tokens, end - empty, keys_S <= queries_BT[:, :, None], causal=False, rows=rows)
        keys_BS = torch.tensor([[piece.first] for piece in group], device=self.device) + keys_S
        return AttentionGroup(tokens, end, attention_mask(queries_BT, keys_BS, self.window), causal=False, rows=rows)

    def _table(self, group: Sequence[SequenceChunk]) -> slice | Tensor:
        """The pages of a group, each sequence's padded to the longest; a slice where they lie together."""
        size = self.pool.page_size
        count = max(-(-(piece.end - piece.first) // size) for piece in group)
        pages: list[int] = []
        for piece in group:
            pages += piece.pages[:count]
            pages += [piece.pages[0]] * (count - len(piece.pages))
        if pages[-1] - pages[0] == len(pages) - 1 and pages == list(range(pages[0], pages[0] + len(pages))):
            return slice(pages[0], pages[0] + len(pages))
        return torch.tensor(pages, device=self.device)


class _PagedLayerCache:
    """One layer of the pool, as one step sees it."""

    def __init__(self, step: PagedStep, layer: tuple[Pages, ...]) -> None:
        self._step, self._layer = step, layer

    def append(self, span: AttentionMetadata, *new_BTGK: Tensor) -> Iterator[tuple[AttentionGroup, tuple[Tensor, ...]]]:
        """Write the step's tokens, then read each part's pages: (B, G, S, K) for each kind of number."""
        step, pool, empty = self._step, self._step.pool, self._step.empty_slots
        for pages, new in zip(self._layer, new_BTGK, strict=True):
            pages.write(step.slots_N, new[0].flatten(1))
        for part, table in zip(span.parts, step.tables, strict=True):
            assert part.rows is not None
            batch = (part.rows.stop - part.rows.start) // part.tokens
            seen = [
                pages.read(table, scratch).view(batch, -1, heads, width)[:, empty : empty + part.end].transpose(1, 2)
                for pages, scratch, (heads, width) in zip(self._layer, pool.scratch, pool.parts, strict=True)
            ]
            yield part, tuple(seen)
