"""Pages against whole forward passes: any order of pages, any mixture of chunks in a step, windows left behind."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from fathom.errors import ContextError
from fathom.model import Decoder, build
from fathom.model.cache import PagedStep, PagePool, SequenceChunk, StaticCache
from fathom.spec import ModelSpec

PAGE = 4


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


class Tables:
    """Hands out pages in random order and forgets those a window has left, as an engine does."""

    def __init__(self, pool: PagePool, window: int | None, seed: int) -> None:
        self.free = list(range(pool.num_pages))
        random.Random(seed).shuffle(self.free)
        self.window, self.pages, self.firsts, self.held = window, {}, {}, {}

    def slice(self, name: int, tokens: int) -> SequenceChunk:
        pages, start = self.pages.setdefault(name, []), self.held.get(name, 0)
        first = self.firsts.get(name, 0)
        while self.window is not None and start - self.window + 1 >= first + PAGE:
            self.free.append(pages.pop(0))
            first += PAGE
        while first + len(pages) * PAGE < start + tokens:
            pages.append(self.free.pop())
        self.held[name], self.firsts[name] = start + tokens, first
        return SequenceChunk(tuple(pages), start, tokens, first)


def run(model: Decoder, pool: PagePool, pieces: list[tuple[SequenceChunk, Tensor]]) -> list[Tensor]:
    step = PagedStep(pool, [piece for piece, _ in pieces], window=model.window)
    hidden_ND = model(torch.cat([tokens for _, tokens in pieces])[None], cache=step).hidden_BTD[0]
    return list(hidden_ND.split([piece.tokens for piece, _ in pieces]))


@pytest.mark.parametrize("seed", range(3))
@torch.inference_mode()
def test_random_mixtures_of_chunks_and_single_tokens_equal_whole_forward_passes(spec: ModelSpec, seed: int) -> None:
    model, draw = build(spec, seed=3).eval(), random.Random(seed)
    pool = PagePool.allocate(spec, pages=80, page_size=PAGE)
    lengths = [draw.randint(20, 60) for _ in range(5)]
    texts = [
        torch.randint(0, spec.vocab_size, (length,), generator=torch.Generator().manual_seed(i))
        for i, length in enumerate(lengths)
    ]
    expected = [model(text[None]).hidden_BTD[0] for text in texts]
    tables, done = Tables(pool, model.window, seed), [0] * 5
    got: list[list[Tensor]] = [[] for _ in texts]
    while any(done[i] < lengths[i] for i in range(5)):
        chosen = [i for i in range(5) if done[i] < lengths[i] and draw.random() < 0.8] or [
            next(i for i in range(5) if done[i] < lengths[i])
        ]
        sizes = {i: min(draw.choice([1, 1, 1, 2, 7, 20]), lengths[i] - done[i]) for i in chosen}
        chosen.sort(key=lambda i: (sizes[i], done[i]))
        pieces = [(tables.slice(i, sizes[i]), texts[i][done[i] : done[i] + sizes[i]]) for i in chosen]
        for i, hidden in zip(chosen, run(model, pool, pieces), strict=True):
            got[i].append(hidden)
            done[i] += sizes[i]
    for parts, whole in zip(got, expected, strict=True):
        close(torch.cat(parts), whole)


@torch.inference_mode()
def test_contiguous_pages_are_read_in_place(latent_spec) -> None:  # type: ignore[no-untyped-def]
    spec = latent_spec()
    pool = PagePool.allocate(spec, pages=8, page_size=PAGE)
    step = PagedStep(pool, [SequenceChunk((2, 3), 5, 1), SequenceChunk((4, 5), 6, 1)])
    step.advance(2)
    assert step.tables == (slice(2, 6),)
    apart = PagedStep(pool, [SequenceChunk((2, 4), 5, 1)])
    apart.advance(1)
    assert isinstance(apart.tables[0], Tensor)


def test_a_short_sequence_beside_a_long_one_is_not_padded_to_it(latent_spec) -> None:  # type: ignore[no-untyped-def]
    pool = PagePool.allocate(latent_spec(), pages=64, page_size=PAGE)
    step = PagedStep(
        pool, [SequenceChunk((0,), 1, 1), SequenceChunk((1,), 2, 1), SequenceChunk(tuple(range(2, 22)), 70, 1)]
    )
    assert [group.end for group in step.advance(3).groups] == [3, 71]


def test_bytes_of_a_token_are_those_of_the_plain_cache(spec: ModelSpec) -> None:
    pool = PagePool.allocate(spec, pages=3, page_size=PAGE)
    assert pool.bytes_per_token == StaticCache.allocate(spec, batch_size=1, max_length=4).bytes_per_token


def test_chunks_without_slots_are_refused(latent_spec) -> None:  # type: ignore[no-untyped-def]
    pool = PagePool.allocate(latent_spec(), pages=4, page_size=PAGE)
    with pytest.raises(ContextError, match="pages for tokens 0 to 4 cannot hold 3 tokens after 2"):
        PagedStep(pool, [SequenceChunk((0,), 2, 3)])
    with pytest.raises(ContextError, match="pack the chunks in order"):
        PagedStep(pool, [SequenceChunk((0,), 0, 3)]).advance(2)
