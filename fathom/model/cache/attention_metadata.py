"""What a forward pass asks of any cache: where the new tokens stand, and which keys they may see.

B sequences, T new tokens, S keys, P keys of a shared beginning, G key-value heads, K head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

MAX_MASKED_KEYS = 2048
"""Keys up to which a chunk of a prompt behind cached tokens attends in one call with a mask.

Longer contexts are causal without one: the mask would grow with the context, and attention over the cached tokens is
merged with that over the new ones by log-sum-exp.
"""


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Sequences of a forward pass that attend in one call: each brings ``tokens`` new tokens and sees ``end`` keys.

    ``mask_BTS`` is True where a query may look; None means everywhere, or everywhere up to itself when ``causal``: the
    new tokens are the last of the keys.
    ``rows`` are the part's tokens where the pass has sequences of different lengths laid end to end, as (1, N); None
    where the part is the whole batch. ``beginning`` are the rows whose keys all of the part's sequences see before
    their own: the tokens they go on from. ``end`` and the mask count these keys first.
    """

    tokens: int
    end: int
    mask_BTS: Tensor | None
    causal: bool
    rows: slice | None = None
    beginning: slice | None = None

    @property
    def mask_B1TS(self) -> Tensor | None:
        """The mask with a place for heads."""
        return None if self.mask_BTS is None else self.mask_BTS[:, None]

    def select(self, x_BTHK: Tensor) -> Tensor:
        """Return the part's own rows of (B, T, ...), one row a sequence."""
        if self.rows is None:
            return x_BTHK
        own_NHK = x_BTHK[0, self.rows]
        return own_NHK.view(-1, self.tokens, *own_NHK.shape[1:])


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """The new tokens of a forward pass.

    ``positions_BT`` is (B, T), or (1, T) when all sequences stand at the same position. Plain caches keep two notes
    of their own: ``start``, that one position, and ``past_slots_S``, the slots of older tokens still in view of a
    rolling store, oldest first.
    """

    positions_BT: Tensor
    parts: tuple[AttentionGroup, ...]
    start: int | None = None
    past_slots_S: Tensor | None = None

    @property
    def new_tokens(self) -> int:
        """T."""
        return self.positions_BT.shape[1]


class LayerCache(Protocol):
    """One layer's numbers."""

    def append(self, span: AttentionMetadata, *new_BTGK: Tensor) -> Iterator[tuple[AttentionGroup, tuple[Tensor, ...]]]:
        """Write the new tokens, in place, then give each part with what it sees: (B, G, S, K) for each ``new``.

        What is given holds until the next part is asked for. The iterator must be run to its end.
        """
        ...


class KeyValueCache(Protocol):
    """Every layer's store and the rule for where new tokens go."""

    @property
    def layers(self) -> Sequence[LayerCache]:
        """One store a layer."""
        ...

    def reach(self, tokens: int) -> int:
        """Return the most tokens any sequence will have after ``tokens`` new ones."""
        ...

    def advance(self, tokens: int) -> AttentionMetadata:
        """Reserve slots for ``tokens`` new tokens and say what they may attend to."""
        ...


def causal_metadata(tokens: int, window: int | None, device: torch.device) -> AttentionMetadata:
    """Return the span of ``tokens`` first tokens without a cache: causal, within the window if there is one."""
    positions_T = torch.arange(tokens, device=device)
    if window is None or window >= tokens:
        part = AttentionGroup(tokens, tokens, None, causal=tokens > 1)
    else:
        part = AttentionGroup(
            tokens, tokens, attention_mask(positions_T[None], positions_T[None], window), causal=False
        )
    return AttentionMetadata(positions_T[None], (part,), 0)


def packed_metadata(
    lengths: Sequence[int], window: int | None, device: torch.device, shared: Sequence[int] | None = None
) -> AttentionMetadata:
    """Return the span of sequences laid end to end as (1, N), none of which sees another.

    Where ``shared`` is given, a sequence with a number above 0 goes on from as many first tokens of the last one before
    it that has 0: it stands behind them and sees them, but they are laid once. ``lengths`` are the tokens laid.
    Neighbours of equal length and beginning attend in one call: sort by both where the order is free.
    """
    each, parts, base, start = list(zip(lengths, shared or [0] * len(lengths), strict=True)), [], 0, 0
    for (length, first), same in groupby(each):
        count = sum(1 for _ in same)
        rows = slice(start, start + length * count)
        if first:
            mask_BTS = _shared_prefix_mask(first, length, window, device)
            parts.append(AttentionGroup(length, first + length, mask_BTS, False, rows, slice(base, base + first)))
        else:
            base = rows.stop - length
            alone = causal_metadata(length, window, device).parts[0]
            parts.append(AttentionGroup(length, length, alone.mask_BTS, alone.causal, rows))
        start = rows.stop
    positions_N = torch.cat([torch.arange(first, first + length, device=device) for length, first in each])
    return AttentionMetadata(positions_N[None], tuple(parts))


def _shared_prefix_mask(first: int, tokens: int, window: int | None, device: torch.device) -> Tensor | None:
    """What tokens behind ``first`` others see of them and of each other, (1, T, P + T); None where that is all."""
    if window is None or window >= first + tokens:
        return None
    keys_S = torch.arange(first + tokens, device=device)
    return attention_mask(keys_S[None, first:], keys_S[None], window)


def attention_mask(queries_BT: Tensor, keys_BS: Tensor, window: int | None) -> Tensor:
    """Whether each query position sees each key position (negative ones are empty): bool (B, T, S)."""
    distance_BTS = queries_BT[:, :, None] - keys_BS[:, None, :]
    seen_BTS = (distance_BTS >= 0) & (keys_BS >= 0)[:, None, :]
    return seen_BTS if window is None else seen_BTS & (distance_BTS < window)
