"""Single-request decoding as one compiled program: everything between matrix products is fused and dispatched once.

Z tokens of a page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fathom.errors import ResourceError
from fathom.model.cache import AttentionGroup, AttentionMetadata, LayerCache, PagePool, Scratch, SequenceChunk
from fathom.model.cache.pool import Pages
from fathom.model.decoder import Decoder


class CompiledDecoding:
    """Runs one new token of one request; equals ``Decoder.forward`` to rounding.

    The first call compiles for up to half a minute; PyTorch caches the result on disk, and later processes take
    seconds. Needs a C++ compiler. One program serves all context lengths. Batches are not compiled: with several
    requests, matrix products take nearly all of a step's time (measured), and nothing was gained.
    """

    def __init__(self, model: Decoder, pool: PagePool) -> None:
        self._model, self._pool = model, pool
        self._program: Callable[..., Tensor] = torch.compile(self._forward, fullgraph=True)

    def warm_up(self) -> None:
        """Compile now, using free pages.

        Raises:
            ResourceError: the compiler is missing or fails.
        """
        size = self._pool.page_size
        try:
            with torch.inference_mode():
                for count in (3, 2):  # two lengths, so that the compiled shapes are dynamic
                    pages = range(min(count, self._pool.num_pages))
                    self(0, SequenceChunk(tuple(pages), len(pages) * size - 1, 1))
        except Exception as error:  # compilers fail in many ways
            reason = " ".join(str(error).split())[:200]
            raise ResourceError(
                f"compile: the decoding step was not compiled ({reason}); install a C++ compiler or leave compile out"
            ) from None
        finally:
            self._pool.clear(range(min(3, self._pool.num_pages)))

    def __call__(self, token: int, chunk: SequenceChunk) -> Tensor:
        """Write one token's KV entries into the pool and return its hidden state after the final norm, (1, D)."""
        size, device = self._pool.page_size, self._pool.device
        held = chunk.start - chunk.first
        pages = chunk.pages[: held // size + 1]
        if len(pages) == 1:  # a dimension of 1 would be specialised
            pages = [pages[0], pages[0]]
        table = torch.tensor(pages, device=device)
        keys_S = torch.arange(len(pages) * size, device=device)
        seen_S = keys_S <= held
        if self._model.window is not None:
            seen_S &= keys_S > held - self._model.window
        slots = torch.tensor([chunk.pages[held // size] * size + held % size], device=device)
        torch._dynamo.mark_dynamic(table, 0)
        torch._dynamo.mark_dynamic(seen_S, 0)
        positions_11 = torch.tensor([[chunk.start]], device=device)
        return self._program(torch.tensor([[token]], device=device), positions_11, slots, table, seen_S)

    def _forward(
        self, tokens_11: Tensor, positions_11: Tensor, slots_1: Tensor, table: Tensor, seen_S: Tensor
    ) -> Tensor:
        step = _SingleTokenCache(self._pool, positions_11, slots_1, table, seen_S)
        return self._model(tokens_11, cache=step).hidden_BTD[0]  # type: ignore[no-any-return]


class _SingleTokenCache:
    """The cache of one token of one request, of tensors only, so that one program serves every position."""

    def __init__(self, pool: PagePool, positions_11: Tensor, slots_1: Tensor, table: Tensor, seen_S: Tensor) -> None:
        self._metadata = AttentionMetadata(
            positions_11, (AttentionGroup(1, seen_S.shape[0], seen_S[None, None], causal=False),)
        )
        self._layer_caches = [_SingleTokenLayerCache(layer, pool.kv_shapes, slots_1, table) for layer in pool.layers]

    @property
    def layers(self) -> Sequence[LayerCache]:
        """One cache per layer."""
        return self._layer_caches

    def max_length_after(self, tokens: int) -> int:
        """Return ``tokens``: the context was checked when the pages were allocated."""
        return tokens

    def advance(self, tokens: int) -> AttentionMetadata:
        """Return the metadata of the one token."""
        return self._metadata


class _SingleTokenLayerCache:
    def __init__(
        self, layer: tuple[Pages, ...], kv_shapes: Sequence[tuple[int, int]], slots_1: Tensor, table: Tensor
    ) -> None:
        self._layer, self._kv_shapes, self._slots_1, self._table = layer, kv_shapes, slots_1, table

    def append(
        self, metadata: AttentionMetadata, *new_BTGW: Tensor
    ) -> Iterator[tuple[AttentionGroup, tuple[Tensor, ...]]]:
        """Write the token, then yield all pages of the request."""
        for pages, new in zip(self._layer, new_BTGW, strict=True):
            pages.write(self._slots_1, new[0].flatten(1))
        seen = [
            pages.read(self._table, _UnsharedScratch()).view(1, -1, heads, width).transpose(1, 2)
            for pages, (heads, width) in zip(self._layer, self._kv_shapes, strict=True)
        ]
        yield metadata.groups[0], tuple(seen)


class _UnsharedScratch(Scratch):
    """A new tensor per read; the compiler plans its own memory."""

    def take(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return a new uninitialised tensor of this shape."""
        return like.new_empty(shape)
