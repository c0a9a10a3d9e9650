"""Caches of past tokens: full keys and values, a rolling window of them, or latents; one interface for all.

B sequences, T new tokens, S cached tokens, G key-value heads, K head width, C latent width, R rotated width.

The cache decides where new tokens go (``advance``); a layer's store only writes and returns (``append``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.errors import ContextError
from fathom.spec import GroupedQueryAttention, ModelSpec


@dataclass(frozen=True, slots=True)
class Span:
    """T new tokens of every sequence and the keys they may attend to.

    ``positions_BT`` is (1, T) when all sequences stand at the same position, with ``start`` that position, else
    (B, T) with ``start`` None. ``mask_BTS`` is True where a query may look; None means everywhere, or everywhere up to
    itself when ``causal``. ``end`` is the number of slots the stores return. ``history_S`` holds, for rolling stores
    that take several tokens at once, the slots of the older tokens still in view, oldest first.
    """

    positions_BT: Tensor
    start: int | None
    end: int
    mask_BTS: Tensor | None
    causal: bool
    history_S: Tensor | None = None

    @property
    def new_tokens(self) -> int:
        """T."""
        return self.positions_BT.shape[1]


def fresh_span(tokens: int, window: int | None, device: torch.device) -> Span:
    """Return the span of ``tokens`` first tokens without a cache: causal, within the window if there is one."""
    positions_T = torch.arange(tokens, device=device)
    if window is None or window >= tokens:
        return Span(positions_T[None], 0, tokens, None, causal=tokens > 1)
    return Span(positions_T[None], 0, tokens, _visible(positions_T[None], positions_T[None], window), causal=False)


def _visible(queries_BT: Tensor, keys_BS: Tensor, window: int | None) -> Tensor:
    """Whether each query position sees each key position (negative ones are empty): bool (B, T, S)."""
    distance_BTS = queries_BT[:, :, None] - keys_BS[:, None, :]
    seen_BTS = (distance_BTS >= 0) & (keys_BS >= 0)[:, None, :]
    return seen_BTS if window is None else seen_BTS & (distance_BTS < window)


class LinearStore:
    """One layer's numbers for every token: ``parts`` tensors of (B, heads, S, width)."""

    def __init__(self, parts: tuple[Tensor, ...]) -> None:
        self.parts = parts

    def append(self, span: Span, *new_BTHK: Tensor) -> tuple[Tensor, ...]:
        """Write the new tokens into their slots, in place, and return each part's first ``span.end`` slots."""
        for part_BHSK, new in zip(self.parts, new_BTHK, strict=True):
            if span.start is not None:
                part_BHSK.narrow(2, span.start, span.new_tokens).copy_(new.transpose(1, 2))
            else:
                rows_B1 = torch.arange(part_BHSK.shape[0], device=part_BHSK.device)[:, None]
                part_BHSK[rows_B1, :, span.positions_BT] = new
        return tuple(part.narrow(2, 0, span.end) for part in self.parts)


class RollingStore(LinearStore):
    """One layer's numbers for the last W tokens; token p lives in slot p mod W."""

    def append(self, span: Span, *new_BTHK: Tensor) -> tuple[Tensor, ...]:
        """Write the last W of the new tokens and return what their queries may see.

        One new token sees the buffer itself; several see the history that was there before and then themselves,
        because they would overwrite what the first of them still needs.
        """
        seen = []
        for part_BHSK, new in zip(self.parts, new_BTHK, strict=True):
            window = part_BHSK.shape[2]
            new_BHTK = new.transpose(1, 2)
            if span.history_S is not None:
                seen.append(torch.cat((part_BHSK[:, :, span.history_S], new_BHTK), dim=2))
            kept = min(span.new_tokens, window)
            if span.start is not None:
                slots_T = span.positions_BT[0, -kept:] % window
                part_BHSK[:, :, slots_T] = new_BHTK[:, :, -kept:]
            else:
                rows_B1 = torch.arange(part_BHSK.shape[0], device=part_BHSK.device)[:, None]
                part_BHSK[rows_B1, :, span.positions_BT[:, -kept:] % window] = new[:, -kept:]
            if span.history_S is None:
                seen.append(part_BHSK[:, :, : span.end])
        return tuple(seen)


class Cache:
    """The caches of all layers and how many tokens each sequence has in them."""

    def __init__(
        self, layers: Sequence[LinearStore], lengths: Sequence[int], max_length: int, window: int | None
    ) -> None:
        self.layers = tuple(layers)
        self.lengths = list(lengths)
        self.max_length = max_length
        self.window = window

    @classmethod
    def allocate(
        cls,
        spec: ModelSpec,
        *,
        batch_size: int,
        max_length: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Cache:
        """Reserve room for ``max_length`` tokens of ``batch_size`` sequences, or for the window if that is less."""
        attention, window = spec.attention, None
        like = torch.empty(0, device=device, dtype=dtype)
        if isinstance(attention, GroupedQueryAttention):
            parts = [(attention.num_kv_heads, attention.head_dim)] * 2
            window = attention.sliding_window
        else:
            parts = [(1, attention.kv_lora_rank + attention.qk_rope_head_dim)]
        rolling = window is not None and window < max_length
        slots = min(window, max_length) if window is not None else max_length
        store = RollingStore if rolling else LinearStore
        layers = [
            store(tuple(like.new_zeros(batch_size, heads, slots, width) for heads, width in parts))
            for _ in range(spec.num_hidden_layers)
        ]
        return cls(layers, [0] * batch_size, max_length, window if rolling else None)

    @property
    def batch_size(self) -> int:
        """Number of sequences."""
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        return sum(part.nbytes for layer in self.layers for part in layer.parts)

    @property
    def bytes_per_token(self) -> int:
        """Bytes one token of one sequence takes in all layers."""
        return sum(part.shape[1] * part.shape[3] * part.element_size() for layer in self.layers for part in layer.parts)

    def rows(self, start: int, stop: int) -> Cache:
        """Return sequences ``start`` to ``stop`` as a cache over the same memory; lengths are its own copy.

        Use it to fill sequences of different lengths one after another, then ``set_lengths``.
        """
        layers = [type(layer)(tuple(part[start:stop] for part in layer.parts)) for layer in self.layers]
        return Cache(layers, self.lengths[start:stop], self.max_length, self.window)

    def set_lengths(self, lengths: Sequence[int]) -> None:
        """Declare how many tokens each sequence holds; shorter than before forgets the newest tokens.

        Raises:
            ContextError: another number of sequences, a length beyond ``max_length``, or a rolling cache asked for
                tokens it has overwritten.
        """
        turned = isinstance(self.layers[0], RollingStore) and max(self.lengths) > self.layers[0].parts[0].shape[2]
        if turned and any(n < held for n, held in zip(lengths, self.lengths, strict=False)):
            raise ContextError(
                f"lengths: a rolling cache of {self.window} slots after {max(self.lengths)} tokens has overwritten "
                "older ones and cannot go back; fill a new cache"
            )
        if len(lengths) != self.batch_size or any(not 0 <= n <= self.max_length for n in lengths):
            raise ContextError(
                f"lengths: {list(lengths)} do not fit {self.batch_size} sequences of at most {self.max_length} tokens; "
                "give one length per sequence within the cache"
            )
        self.lengths = list(lengths)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all sequences but ``rows``, in that order, and free the others' memory."""
        for layer in self.layers:
            index = torch.tensor(list(rows), device=layer.parts[0].device)
            layer.parts = tuple(part.index_select(0, index) for part in layer.parts)
        self.lengths = [self.lengths[row] for row in rows]

    def advance(self, tokens: int) -> Span:
        """Reserve slots for ``tokens`` new tokens of every sequence and say what they may attend to.

        Raises:
            ContextError: a sequence would outgrow the cache.
        """
        starts, longest = self.lengths, max(self.lengths)
        if longest + tokens > self.max_length:
            raise ContextError(
                f"cache: {longest} tokens held and {tokens} more exceed its {self.max_length}; "
                "shorten the prompt, lower max_tokens or allocate a longer cache"
            )
        device = self.layers[0].parts[0].device
        self.lengths = [start + tokens for start in starts]
        uniform = min(starts) == longest
        heads = [longest] if uniform else starts
        starts_B1 = torch.tensor(heads, device=device)[:, None]
        positions_BT = starts_B1 + torch.arange(tokens, device=device)
        start = longest if uniform else None
        if isinstance(self.layers[0], RollingStore):
            return self._rolling_span(positions_BT, starts_B1, start, longest)
        end = longest + tokens
        if uniform and (tokens == 1 or longest == 0) and self.window is None:
            return Span(positions_BT, start, end, None, causal=tokens > 1)
        keys_1S = torch.arange(end, device=device)[None]
        return Span(positions_BT, start, end, _visible(positions_BT, keys_1S, self.window), causal=False)

    def _rolling_span(self, positions_BT: Tensor, starts_B1: Tensor, start: int | None, longest: int) -> Span:
        window, tokens = self.layers[0].parts[0].shape[2], positions_BT.shape[1]
        slots_1S = torch.arange(window, device=positions_BT.device)[None]
        if tokens == 1:
            end = min(longest + 1, window)
            if start is not None:
                return Span(positions_BT, start, end, None, causal=False)
            newest_B1 = starts_B1
            held_BS = (newest_B1 - (newest_B1 - slots_1S) % window)[:, :end]
            return Span(positions_BT, start, end, _visible(positions_BT, held_BS, window), causal=False)
        newest_B1 = starts_B1 - 1
        held_BS = newest_B1 - (newest_B1 - slots_1S) % window
        history_S = slots_1S[0, : min(longest, window)]
        keys_BS = torch.cat((held_BS[:, : history_S.numel()], positions_BT), dim=1)
        mask_BTS = _visible(positions_BT, keys_BS, window)
        return Span(positions_BT, start, keys_BS.shape[1], mask_BTS, causal=False, history_S=history_S)
