"""Decoding as compiled programs: what is left between the products is fused, and dispatched once.

B requests, S keys, P pages of a request, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fathom.errors import ResourceError
from fathom.model.cache import PagePool, Part, Scratch, Slice, Span, Store
from fathom.model.cache.pool import Pages
from fathom.model.decoder import Decoder

_MOST_REQUESTS = 64  # the packed products take no more rows
_MOST_PADDING = 1.5
_MOST_KEYS = 65_536


class CompiledDecoding:
    """Runs one new token of each of some requests; the same numbers as ``Decoder.forward``, to rounding.

    There are two programs, for one request and for several; each is compiled when it is first needed, for half a
    minute or less. PyTorch keeps the result on disk, and later processes take seconds. Needs a C++ compiler. Any number
    of requests and any length of context run in the same program.
    """

    def __init__(self, model: Decoder, pool: PagePool) -> None:
        self._model, self._pool = model, pool
        self._alone: Callable[..., Tensor] = torch.compile(self._forward, fullgraph=True)
        self._together: Callable[..., Tensor] = torch.compile(self._forward, fullgraph=True)

    def warm_up(self, requests: int) -> None:
        """Compile now, in pages that hold nothing yet, for as many requests as may run together.

        Raises:
            ResourceError: the compiler is missing or fails.
        """
        lengths = [length for length in (3, 2) if length < self._pool.num_pages] or [1]  # any length, from two
        counts = [1] + [min(3, requests)] * (requests > 1)
        try:
            with torch.inference_mode():
                for count in counts:
                    for length in lengths:
                        pages = tuple(range(length))
                        piece = Slice(pages, length * self._pool.page_size - 1, 1)
                        self([0] * count, [piece] * count)
        except Exception as error:  # whatever a compiler can lack
            reason = " ".join(str(error).split())[:200]
            raise ResourceError(
                f"compile: the decoding step was not compiled ({reason}); install a C++ compiler or leave compile out"
            ) from None
        finally:
            self._pool.clear(range(min(3, self._pool.num_pages)))

    def takes(self, pieces: Sequence[Slice]) -> bool:
        """Whether this is a step of the kind: a token each, and lengths of which padding wastes little."""
        if len(pieces) > _MOST_REQUESTS or any(piece.tokens != 1 for piece in pieces):
            return False
        lengths = [piece.end - piece.first for piece in pieces]
        padded = len(lengths) * max(lengths)
        return len(pieces) == 1 or (padded <= _MOST_KEYS and padded <= _MOST_PADDING * sum(lengths))

    def __call__(self, tokens: Sequence[int], pieces: Sequence[Slice]) -> Tensor:
        """Write the tokens' numbers into the pool and return their hidden states after the final norm, (B, D)."""
        size, device = self._pool.page_size, self._pool.device
        held = [piece.start - piece.first for piece in pieces]
        count = max(max(held) // size + 1, 2)  # a dimension of 1 would be compiled apart
        table = [[*piece.pages[:count], *[piece.pages[0]] * (count - len(piece.pages))] for piece in pieces]
        slots = [piece.pages[at // size] * size + at % size for piece, at in zip(pieces, held, strict=True)]
        positions = [piece.start for piece in pieces]
        held_B1 = torch.tensor(held, device=device)[:, None]
        keys_1S = torch.arange(count * size, device=device)[None]
        seen_BS = keys_1S <= held_B1
        if self._model.window is not None:
            seen_BS &= keys_1S > held_B1 - self._model.window
        given = [torch.tensor(each, device=device) for each in (tokens, positions, slots, table)]
        torch._dynamo.mark_dynamic(given[3], 1)
        torch._dynamo.mark_dynamic(seen_BS, 1)
        program = self._alone
        if len(pieces) > 1:
            program = self._together
            for each in (*given, seen_BS):
                torch._dynamo.mark_dynamic(each, 0)
        return program(*given, seen_BS)

    def _forward(
        self, tokens_B: Tensor, positions_B: Tensor, slots_B: Tensor, table_BP: Tensor, seen_BS: Tensor
    ) -> Tensor:
        step = _TokenEach(self._pool, positions_B, slots_B, table_BP, seen_BS)
        return self._model(tokens_B[None], cache=step).hidden_BTD[0]  # type: ignore[no-any-return]


class _TokenEach:
    """The cache of one token of each request, made of tensors alone, so that one program serves every position."""

    def __init__(self, pool: PagePool, positions_B: Tensor, slots_B: Tensor, table_BP: Tensor, seen_BS: Tensor) -> None:
        part = Part(1, seen_BS.shape[1], seen_BS[:, None], causal=False, rows=slice(None))
        self._span = Span(positions_B[None], (part,))
        self._stores = [_TokenEachStore(layer, pool.parts, slots_B, table_BP) for layer in pool.layers]

    @property
    def layers(self) -> Sequence[Store]:
        """One store a layer."""
        return self._stores

    def reach(self, tokens: int) -> int:
        """Nothing to check: whoever gave the requests their pages knows the context."""
        return 1

    def advance(self, tokens: int) -> Span:
        """Return the span it was made for."""
        return self._span


class _TokenEachStore:
    def __init__(
        self, layer: tuple[Pages, ...], parts: Sequence[tuple[int, int]], slots_B: Tensor, table_BP: Tensor
    ) -> None:
        self._layer, self._parts, self._slots_B, self._table_BP = layer, parts, slots_B, table_BP

    def append(self, span: Span, *new_BTGK: Tensor) -> Iterator[tuple[Part, tuple[Tensor, ...]]]:
        """Write the tokens, then read all pages of the requests."""
        for pages, new in zip(self._layer, new_BTGK, strict=True):
            pages.write(self._slots_B, new[0].flatten(1))
        batch = self._table_BP.shape[0]
        seen = [
            pages.read(self._table_BP.flatten(), _Fresh()).view(batch, -1, heads, width).transpose(1, 2)
            for pages, (heads, width) in zip(self._layer, self._parts, strict=True)
        ]
        yield span.parts[0], tuple(seen)


class _Fresh(Scratch):
    """Room that is new each time; the compiler plans its own memory."""

    def take(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return uninitialised room of this shape."""
        return like.new_empty(shape)
