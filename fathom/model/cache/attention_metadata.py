"""Attention metadata of a forward pass, and the interface of KV caches that supply it.

X keys of a shared prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Protocol

import torch
from torch import Tensor

from fathom.model.device import to_device

MAX_MASKED_KEYS = 2048
"""Keys up to which a chunk of a prompt behind cached tokens attends in one call with a mask.

Longer contexts are causal without one: the mask would grow with the context, and attention over the cached tokens is
merged with that over the new ones by log-sum-exp.
"""


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Sequences that attend in one kernel call: each has ``tokens`` queries and ``end`` keys.

    ``mask_BTS`` is True where a query attends; None means all keys, or all up to the query's own when ``causal``, the
    queries being the last of the keys.
    ``rows`` are the group's tokens in a packed batch (1, N); None where the group is the whole batch. ``prefix`` are
    the rows of the shared prefix, whose keys precede those of every sequence of the group; ``end`` and the mask count
    them first.
    """

    tokens: int
    end: int
    mask_BTS: Tensor | None
    causal: bool
    rows: slice | None = None
    prefix: slice | None = None

    @property
    def mask_B1TS(self) -> Tensor | None:
        """The mask with a dimension for heads."""
        return None if self.mask_BTS is None else self.mask_BTS[:, None]

    def select(self, x_BTHW: Tensor) -> Tensor:
        """Return the group's rows of (B, T, ...) as (sequences, tokens, ...)."""
        if self.rows is None:
            return x_BTHW
        own_NHW = x_BTHW[0, self.rows]
        return own_NHW.view(-1, self.tokens, *own_NHW.shape[1:])


@dataclass(frozen=True, slots=True)
class SequenceSpans:
    """Where sequences begin and end, laid one after another: each attends causally to itself, within ``window``.

    ``ends`` (int32) has one more number than there are sequences, the first being 0; None where all have ``longest``
    tokens.
    """

    ends: Tensor | None
    longest: int
    window: int | None

    def ends_of(self, sequences: int, device: torch.device) -> Tensor:
        """Return the ends of this many sequences."""
        if self.ends is not None:
            return self.ends
        return torch.arange(sequences + 1, dtype=torch.int32, device=device) * self.longest


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Positions and attention groups of a forward pass.

    ``positions_BT`` is (B, T), or (1, T) where all sequences are at the same position. Two fields are for static caches
    only: ``start``, the position that all sequences share, and ``past_slots_S``, the slots of older tokens that are
    still within a rolling cache's window, oldest first. ``spans`` describe the same attention as the groups do, for a
    kernel that takes all sequences at once; only without a cache, and for a GPU.
    """

    positions_BT: Tensor
    groups: tuple[AttentionGroup, ...]
    start: int | None = None
    past_slots_S: Tensor | None = None
    spans: SequenceSpans | None = None

    @property
    def new_tokens(self) -> int:
        """T."""
        return self.positions_BT.shape[1]


class LayerCache(Protocol):
    """The KV cache of one layer."""

    def append(
        self, metadata: AttentionMetadata, *new_BTGW: Tensor
    ) -> Iterator[tuple[AttentionGroup, tuple[Tensor, ...]]]:
        """Write the new tokens in place, then yield each group with its keys and values: (B, G, S, W) per ``new``.

        Yielded tensors are valid until the next group is requested. The iterator must be exhausted.
        """
        ...


class KeyValueCache(Protocol):
    """The KV caches of all layers, and the slots of new tokens."""

    @property
    def layers(self) -> Sequence[LayerCache]:
        """One cache per layer."""
        ...

    def max_length_after(self, tokens: int) -> int:
        """Return the length of the longest sequence after ``tokens`` new ones."""
        ...

    def advance(self, tokens: int) -> AttentionMetadata:
        """Reserve slots for ``tokens`` new tokens and return their attention metadata."""
        ...


def causal_metadata(tokens: int, window: int | None, device: torch.device) -> AttentionMetadata:
    """Return the metadata of sequences of ``tokens`` tokens without a cache: causal, within the sliding window."""
    positions_T = torch.arange(tokens, device=device)
    if window is None or window >= tokens:
        return AttentionMetadata(positions_T[None], (AttentionGroup(tokens, tokens, None, causal=tokens > 1),), 0)
    mask_1TT = attention_mask(positions_T[None], positions_T[None], window)
    spans = None if device.type == "cpu" else SequenceSpans(None, tokens, window)
    group = AttentionGroup(tokens, tokens, mask_1TT, causal=False)
    return AttentionMetadata(positions_T[None], (group,), 0, spans=spans)


def packed_metadata(
    lengths: Sequence[int],
    window: int | None,
    device: torch.device,
    shared_prefix_lengths: Sequence[int] | None = None,
) -> AttentionMetadata:
    """Return the metadata of packed sequences (1, N), see ``fathom.model.forward_options.PackedSequences``.

    Neighbours of equal length and prefix attend in one call: sort by both where the order is free.
    """
    each = list(zip(lengths, shared_prefix_lengths or [0] * len(lengths), strict=True))
    groups, base, start = [], 0, 0
    for (length, prefix), same in groupby(each):
        count = sum(1 for _ in same)
        rows = slice(start, start + length * count)
        if prefix:
            mask_BTS = _shared_prefix_mask(prefix, length, window, device)
            groups.append(AttentionGroup(length, prefix + length, mask_BTS, False, rows, slice(base, base + prefix)))
        else:
            base = rows.stop - length
            alone = causal_metadata(length, window, device).groups[0]
            groups.append(AttentionGroup(length, length, alone.mask_BTS, alone.causal, rows))
        start = rows.stop
    positions_N = torch.cat([torch.arange(prefix, prefix + length) for length, prefix in each])
    spans = None
    if device.type != "cpu" and not any(prefix for _, prefix in each):
        ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        spans = SequenceSpans(to_device(ends, device), max(lengths), window)
    return AttentionMetadata(to_device(positions_N, device)[None], tuple(groups), spans=spans)


def _shared_prefix_mask(prefix: int, tokens: int, window: int | None, device: torch.device) -> Tensor | None:
    """The mask (1, T, X + T) of tokens after a prefix over the prefix and themselves; None where it hides nothing."""
    if window is None or window >= prefix + tokens:
        return None
    keys_S = torch.arange(prefix + tokens, device=device)
    return attention_mask(keys_S[None, prefix:], keys_S[None], window)


def attention_mask(queries_BT: Tensor, keys_BS: Tensor, window: int | None) -> Tensor:
    """Return the causal, windowed mask of query and key positions, bool (B, T, S); negative key positions are empty."""
    distance_BTS = queries_BT[:, :, None] - keys_BS[:, None, :]
    seen_BTS = (distance_BTS >= 0) & (keys_BS >= 0)[:, None, :]
    return seen_BTS if window is None else seen_BTS & (distance_BTS < window)
