"""The MTP module over pages, in chunks, against the whole-sequence pass that training runs."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fathom.model import Decoder, build
from fathom.model.cache import PagedStep, PagePool, SequenceChunk
from fathom.spec import ModelSpec

PAGE = 4


@pytest.fixture(params=["mla", "gqa", "hash"])
def model(request: pytest.FixtureRequest, latent_spec, grouped_spec) -> Decoder:  # type: ignore[no-untyped-def]
    spec: ModelSpec = grouped_spec() if request.param == "gqa" else latent_spec(q_lora_rank=12)
    if request.param == "hash":
        assert spec.moe is not None
        router = replace(spec.moe.router, score="hash", normalize=False)
        spec = replace(spec, moe=replace(spec.moe, router=router, num_experts_per_tok=1))
    return build(replace(spec, num_nextn_predict_layers=1), seed=3, dtype=torch.float64).eval()


class Ahead:
    """Feeds the module what an engine would: slot i takes token i and the hidden state before it."""

    def __init__(self, model: Decoder, pool: PagePool) -> None:
        self.model, self.pool = model, pool

    def run(self, pieces: list[tuple[SequenceChunk, Tensor, Tensor]]) -> list[Tensor]:
        first = self.model.spec.num_hidden_layers
        step = PagedStep(self.pool, [piece for piece, _, _ in pieces], first_layer=first, empty_slots=1)
        tokens = torch.cat([tokens for _, tokens, _ in pieces])
        previous = torch.cat([hidden for _, _, hidden in pieces])
        return list(self.model.forward_mtp(tokens[None], previous[None], step)[0].split([p[0].tokens for p in pieces]))


def pool_of(model: Decoder, pages: int) -> PagePool:
    pool = PagePool.allocate(model.spec, pages=pages, page_size=PAGE, extra_layers=1, dtype=torch.float64)
    for layer in pool.layers:  # what was not written must not be read
        for part in layer:
            rows = torch.full((1, pool.kv_shapes[0][0] * pool.kv_shapes[0][1]), 1e6, dtype=torch.float64)
            part.write(torch.arange(pages * PAGE), rows.expand(pages * PAGE, -1))
    return pool


@pytest.mark.parametrize("seed", range(3))
@torch.inference_mode()
def test_random_mixtures_of_chunks_equal_the_whole_pass(model: Decoder, seed: int) -> None:
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    texts = [torch.randint(0, 100, (length,), generator=generator) for length in (2, 9, 23, 40)]
    whole = [model(text[None], mtp=True) for text in texts]
    ahead = Ahead(model, pool_of(model, 60))
    free = list(range(60))
    draw.shuffle(free)
    pages = [[free.pop() for _ in range(-(-len(text) // PAGE))] for text in texts]
    done, got = [1] * len(texts), [[] for _ in texts]
    while any(done[i] < len(text) for i, text in enumerate(texts)):
        alive = [i for i, text in enumerate(texts) if done[i] < len(text)]
        sizes = {i: min(draw.choice([1, 1, 2, 3, 17]), len(texts[i]) - done[i]) for i in alive if draw.random() < 0.8}
        chosen = sorted(sizes, key=lambda i: (sizes[i], done[i]))
        if not chosen:
            continue
        pieces = []
        for i in chosen:
            start, stop = done[i], done[i] + sizes[i]
            hidden = whole[i].hidden_BTD[0, start - 1 : stop - 1]
            pieces.append((SequenceChunk(pages[i], start, sizes[i]), texts[i][start:stop], hidden))
            done[i] = stop
        for i, hidden in zip(chosen, ahead.run(pieces), strict=True):
            got[i].append(hidden)
    for parts, output in zip(got, whole, strict=True):
        torch.testing.assert_close(torch.cat(parts), output.mtp_hidden[0][0], atol=1e-7, rtol=1e-7)


@torch.inference_mode()
def test_what_was_written_for_refused_tokens_is_overwritten(model: Decoder) -> None:
    tokens = torch.randint(0, 100, (12,), generator=torch.Generator().manual_seed(5))
    output = model(tokens[None], mtp=True)
    hidden, ahead = output.hidden_BTD[0], Ahead(model, pool_of(model, 4))
    pages = (2, 0, 3)
    ahead.run([(SequenceChunk(pages, 1, 7), tokens[1:8], hidden[:7])])
    ahead.run([(SequenceChunk(pages, 8, 4), tokens[1:5], hidden[3:7])])
    (again,) = ahead.run([(SequenceChunk(pages, 8, 4), tokens[8:], hidden[7:11])])
    torch.testing.assert_close(again, output.mtp_hidden[0][0, 7:], atol=1e-7, rtol=1e-7)
