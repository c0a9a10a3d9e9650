"""Prefill in chunks and decoding one by one equal the whole forward pass, for every cache kind."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from fathom.model import Decoder, StaticCache
from fathom.spec import GroupedQueryAttention, LatentAttention

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def step(model: Decoder, tokens_BT: Tensor, cache: StaticCache, form: str = "auto") -> Tensor:
    with torch.no_grad():
        return model.logits(model(tokens_BT, cache=cache, form=form).hidden_BTD)


@pytest.mark.parametrize("seed", [1, 2])
def test_random_chunks_then_single_tokens_equal_the_whole(pair, seed: int) -> None:
    draw = random.Random(seed)
    tokens_BT = pair.tokens_BT if seed == 1 else pair.tokens_BT[:1]
    batch, length = tokens_BT.shape
    cache = StaticCache.allocate(pair.spec, batch_size=batch, max_length=length)
    pieces, start = [], 0
    while start < length - 20:
        size = min(draw.randint(1, 24), length - 20 - start)
        pieces.append(step(pair.ours, tokens_BT[:, start : start + size], cache))
        start += size
    pieces += [step(pair.ours, tokens_BT[:, i : i + 1], cache) for i in range(start, length)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), pair.our_logits(tokens_BT), **CLOSE)


def test_decoding_agrees_with_transformers(pair) -> None:
    tokens_BT = pair.tokens_BT
    cache = StaticCache.allocate(pair.spec, batch_size=2, max_length=80)
    ours = [step(pair.ours, tokens_BT[:, :70], cache)]
    ours += [step(pair.ours, tokens_BT[:, i : i + 1], cache) for i in range(70, 80)]
    torch.testing.assert_close(torch.cat(ours, dim=1), pair.their_logits(tokens_BT), rtol=0, atol=1e-5)


def test_sequences_of_different_lengths_decode_as_if_alone(pair) -> None:
    lengths = [37, 5, 22]
    texts = [torch.randint(0, 97, (1, n + 6), generator=torch.Generator().manual_seed(n)) for n in lengths]
    cache = StaticCache.allocate(pair.spec, batch_size=3, max_length=60)
    for row, (text_1T, length) in enumerate(zip(texts, lengths, strict=True)):
        step(pair.ours, text_1T[:, :length], cache.rows(row, row + 1))
    cache.set_lengths(lengths)
    for i in range(6):
        new_B1 = torch.cat([text[:, n + i : n + i + 1] for text, n in zip(texts, lengths, strict=True)])
        together = step(pair.ours, new_B1, cache)
        for row, (text_1T, length) in enumerate(zip(texts, lengths, strict=True)):
            alone = pair.our_logits(text_1T[:, : length + i + 1])[0, -1]
            torch.testing.assert_close(together[row, 0], alone, **CLOSE)


@pytest.mark.parametrize("chunk", [1, 7, 80])
def test_absorbed_equals_expanded(latent_pair, chunk: int) -> None:
    tokens_BT = latent_pair.tokens_BT[:, : 20 * chunk + 20]
    found = {}
    for form in ("absorbed", "expanded"):
        cache = StaticCache.allocate(latent_pair.spec, batch_size=2, max_length=80)
        parts = [step(latent_pair.ours, part, cache, form) for part in tokens_BT.split(chunk, dim=1)]
        found[form] = torch.cat(parts, dim=1)
    torch.testing.assert_close(found["absorbed"], found["expanded"], **CLOSE)
    torch.testing.assert_close(found["absorbed"], latent_pair.our_logits(tokens_BT), **CLOSE)
    assert not torch.equal(found["absorbed"], found["expanded"]), "the form was not chosen"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_bytes_are_what_the_papers_say(pair, dtype: torch.dtype) -> None:
    """MHA and GQA 2 x kv_heads x head_dim numbers, MLA kv_lora_rank + qk_rope_head_dim, windows min(context, W)."""
    cache = StaticCache.allocate(pair.spec, batch_size=3, max_length=40, dtype=dtype)
    attention, slots = pair.spec.attention, 40
    if isinstance(attention, LatentAttention):
        numbers = attention.kv_lora_rank + attention.qk_rope_head_dim
    else:
        assert isinstance(attention, GroupedQueryAttention)
        numbers = 2 * attention.num_kv_heads * attention.head_dim
        slots = min(40, attention.sliding_window or 40)
    assert attention.cache_numbers_per_token == numbers
    per_token = numbers * pair.spec.num_hidden_layers * dtype.itemsize
    assert cache.bytes_per_token == per_token
    assert cache.nbytes == 3 * slots * per_token
    held = sum(part.untyped_storage().nbytes() for layer in cache.layers for part in layer.tensors)
    assert held == cache.nbytes
