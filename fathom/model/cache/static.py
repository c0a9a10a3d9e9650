"""Static KV caches: one contiguous tensor per layer and kind; the reference implementation of the paged ones.

The cache assigns slots to new tokens (``advance``); a layer's cache writes them and returns views (``append``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fathom.errors import ContextError
from fathom.model.cache.attention_metadata import MAX_MASKED_KEYS, AttentionGroup, AttentionMetadata, attention_mask
from fathom.model.device import numbers_on
from fathom.spec import GroupedQueryAttention, ModelSpec


class FullLayerCache:
    """The keys and values, or latents, of every token in one layer: ``tensors`` are (B, heads, S, width) each."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors = tensors

    def append(
        self, metadata: AttentionMetadata, *new_BTHW: Tensor
    ) -> Iterator[tuple[AttentionGroup, tuple[Tensor, ...]]]:
        """Write the new tokens into their slots, in place, and yield the slots up to the newest."""
        (group,) = metadata.groups
        for held_BHSW, new in zip(self.tensors, new_BTHW, strict=True):
            if metadata.start is not None:
                held_BHSW.narrow(2, metadata.start, metadata.new_tokens).copy_(new.transpose(1, 2))
            else:
                rows_B1 = torch.arange(held_BHSW.shape[0], device=held_BHSW.device)[:, None]
                held_BHSW[rows_B1, :, metadata.positions_BT] = new
        yield group, tuple(held.narrow(2, 0, group.end) for held in self.tensors)


class SlidingWindowLayerCache(FullLayerCache):
    """A rolling buffer of the last W tokens in one layer; token p is in slot p mod W."""

    def append(
        self, metadata: AttentionMetadata, *new_BTHW: Tensor
    ) -> Iterator[tuple[AttentionGroup, tuple[Tensor, ...]]]:
        """Write the last W of the new tokens and yield the keys of all queries.

        One new token attends to the buffer itself; several attend to a copy of the past followed by themselves,
        because writing them overwrites what the first of them still needs.
        """
        (group,), seen = metadata.groups, []
        for held_BHSW, new in zip(self.tensors, new_BTHW, strict=True):
            window = held_BHSW.shape[2]
            new_BHTW = new.transpose(1, 2)
            if metadata.past_slots_S is not None:
                seen.append(torch.cat((held_BHSW[:, :, metadata.past_slots_S], new_BHTW), dim=2))
            kept = min(metadata.new_tokens, window)
            if metadata.start is not None:
                slots_T = metadata.positions_BT[0, -kept:] % window
                held_BHSW[:, :, slots_T] = new_BHTW[:, :, -kept:]
            else:
                rows_B1 = torch.arange(held_BHSW.shape[0], device=held_BHSW.device)[:, None]
                held_BHSW[rows_B1, :, metadata.positions_BT[:, -kept:] % window] = new[:, -kept:]
            if metadata.past_slots_S is None:
                seen.append(held_BHSW[:, :, : group.end])
        yield group, tuple(seen)


class StaticCache:
    """The caches of all layers, with the number of tokens that each sequence has."""

    def __init__(
        self, layers: Sequence[FullLayerCache], lengths: Sequence[int], max_length: int, window: int | None
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
    ) -> StaticCache:
        """Allocate slots for ``max_length`` tokens of ``batch_size`` sequences, or for the window if that is less."""
        attention, window = spec.attention, None
        like = torch.empty(0, device=device, dtype=dtype)
        if isinstance(attention, GroupedQueryAttention):
            kv_shapes = [(attention.num_kv_heads, attention.head_dim)] * 2
            window = attention.sliding_window
        else:
            kv_shapes = [(1, attention.kv_lora_rank + attention.qk_rope_head_dim)]
        rolling = window is not None and window < max_length
        slots = min(window, max_length) if window is not None else max_length
        layer_cache = SlidingWindowLayerCache if rolling else FullLayerCache
        layers = [
            layer_cache(tuple(like.new_zeros(batch_size, heads, slots, width) for heads, width in kv_shapes))
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
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.tensors)

    @property
    def bytes_per_token(self) -> int:
        """Bytes per token of one sequence, over all layers."""
        return sum(
            tensor.shape[1] * tensor.shape[3] * tensor.element_size()
            for layer in self.layers
            for tensor in layer.tensors
        )

    def rows(self, start: int, stop: int) -> StaticCache:
        """Return sequences ``start`` to ``stop`` as a cache over the same memory; lengths are its own copy.

        Use it to fill sequences of different lengths one after another, then ``set_lengths``.
        """
        layers = [type(layer)(tuple(tensor[start:stop] for tensor in layer.tensors)) for layer in self.layers]
        return StaticCache(layers, self.lengths[start:stop], self.max_length, self.window)

    def set_lengths(self, lengths: Sequence[int]) -> None:
        """Set the number of tokens of each sequence; a smaller one drops the newest tokens.

        Raises:
            ContextError: another number of sequences, a length beyond ``max_length``, or a rolling cache asked for
                tokens it has overwritten.
        """
        wrapped = (
            isinstance(self.layers[0], SlidingWindowLayerCache)
            and max(self.lengths) > self.layers[0].tensors[0].shape[2]
        )
        if wrapped and any(n < held for n, held in zip(lengths, self.lengths, strict=False)):
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

    def select_batch(self, rows: Sequence[int]) -> None:
        """Keep the sequences ``rows``, in that order, and free the memory of the others."""
        for layer in self.layers:
            index = numbers_on(layer.tensors[0].device, list(rows))
            layer.tensors = tuple(tensor.index_select(0, index) for tensor in layer.tensors)
        self.lengths = [self.lengths[row] for row in rows]

    def max_length_after(self, tokens: int) -> int:
        """Return the length of the longest sequence after ``tokens`` new ones."""
        return max(self.lengths) + tokens

    def advance(self, tokens: int) -> AttentionMetadata:
        """Reserve slots for ``tokens`` new tokens of every sequence and return their attention metadata.

        Raises:
            ContextError: a sequence would outgrow the cache.
        """
        starts, longest = self.lengths, max(self.lengths)
        if longest + tokens > self.max_length:
            raise ContextError(
                f"cache: {longest} tokens held and {tokens} more exceed its {self.max_length}; "
                "shorten the prompt, lower max_tokens or allocate a longer cache"
            )
        device = self.layers[0].tensors[0].device
        self.lengths = [start + tokens for start in starts]
        uniform = min(starts) == longest
        heads = [longest] if uniform else starts
        starts_B1 = numbers_on(device, heads)[:, None]
        positions_BT = starts_B1 + torch.arange(tokens, device=device)
        start = longest if uniform else None
        if isinstance(self.layers[0], SlidingWindowLayerCache):
            return self._rolling_metadata(positions_BT, starts_B1, start, longest)
        end = longest + tokens
        if uniform and (tokens == 1 or longest == 0 or end > MAX_MASKED_KEYS) and self.window is None:
            return AttentionMetadata(positions_BT, (AttentionGroup(tokens, end, None, causal=tokens > 1),), start)
        keys_1S = torch.arange(end, device=device)[None]
        group = AttentionGroup(tokens, end, attention_mask(positions_BT, keys_1S, self.window), causal=False)
        return AttentionMetadata(positions_BT, (group,), start)

    def _rolling_metadata(
        self, positions_BT: Tensor, starts_B1: Tensor, start: int | None, longest: int
    ) -> AttentionMetadata:
        window, tokens = self.layers[0].tensors[0].shape[2], positions_BT.shape[1]
        slots_1S = torch.arange(window, device=positions_BT.device)[None]
        if tokens == 1:
            end = min(longest + 1, window)
            if start is not None:
                return AttentionMetadata(positions_BT, (AttentionGroup(1, end, None, causal=False),), start)
            newest_B1 = starts_B1
            held_BS = (newest_B1 - (newest_B1 - slots_1S) % window)[:, :end]
            group = AttentionGroup(1, end, attention_mask(positions_BT, held_BS, window), causal=False)
            return AttentionMetadata(positions_BT, (group,), start)
        newest_B1 = starts_B1 - 1
        held_BS = newest_B1 - (newest_B1 - slots_1S) % window
        past_slots_S = slots_1S[0, : min(longest, window)]
        keys_BS = torch.cat((held_BS[:, : past_slots_S.numel()], positions_BT), dim=1)
        mask_BTS = attention_mask(positions_BT, keys_BS, window)
        group = AttentionGroup(tokens, keys_BS.shape[1], mask_BTS, causal=False)
        return AttentionMetadata(positions_BT, (group,), start, past_slots_S)
