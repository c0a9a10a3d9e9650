"""Every cache kind, chunking and batch gives the numbers of the whole forward, in the bytes the papers say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fathom.errors import ContextError
from fathom.model import Decoder, StaticCache, build
from fathom.spec import ModelSpec

KINDS = ["latent", "latent-q", "full", "mqa", "rolling"]
LENGTH = 70


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, latent_spec, grouped_spec) -> Decoder:  # type: ignore[no-untyped-def]
    made: dict[str, ModelSpec] = {
        "latent": latent_spec(),
        "latent-q": latent_spec(q_lora_rank=12),
        "full": grouped_spec(),
        "mqa": grouped_spec(kv_heads=1),
        "rolling": grouped_spec(window=12),
    }
    return build(made[request.param]).eval()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 100, (2, LENGTH), generator=torch.Generator().manual_seed(3))


def whole(model: Decoder, tokens: Tensor) -> Tensor:
    return model.logits(model(tokens).hidden_BTD)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("form", ["auto", "expanded", "absorbed"])
@pytest.mark.parametrize("chunks", [[70], [1] * 70, [33, 1, 5, 20, 1, 10], [69, 1], [11] * 6 + [4]])
def test_chunks_then_decoding_equal_the_whole_forward(model: Decoder, tokens: Tensor, chunks: list[int], form) -> None:  # type: ignore[no-untyped-def]
    cache, at, outputs = StaticCache.allocate(model.spec, batch_size=2, max_length=80), 0, []
    for size in chunks:
        outputs.append(model.logits(model(tokens[:, at : at + size], cache=cache, form=form).hidden_BTD))
        at += size
    close(torch.cat(outputs, dim=1), whole(model, tokens))


@torch.inference_mode()
def test_sequences_of_different_lengths_decode_together(model: Decoder, tokens: Tensor) -> None:
    expected, cache = whole(model, tokens), StaticCache.allocate(model.spec, batch_size=2, max_length=80)
    for row, length in enumerate((20, 45)):
        model(tokens[row : row + 1, :length], cache=cache.rows(row, row + 1))
    cache.set_lengths([20, 45])
    for step in range(10):
        new = torch.stack((tokens[0, 20 + step], tokens[1, 45 + step]))[:, None]
        logits = model.logits(model(new, cache=cache).hidden_BTD)
        close(logits[:, 0], torch.stack((expected[0, 20 + step], expected[1, 45 + step])))
    new = torch.stack((tokens[0, 30:35], tokens[1, 55:60]))
    logits = model.logits(model(new, cache=cache).hidden_BTD)
    close(logits, torch.stack((expected[0, 30:35], expected[1, 55:60])))


@torch.inference_mode()
def test_dropping_a_sequence_leaves_the_other_unchanged(model: Decoder, tokens: Tensor) -> None:
    cache = StaticCache.allocate(model.spec, batch_size=2, max_length=80)
    model(tokens[:, :30], cache=cache)
    cache.select_batch([1])
    logits = model.logits(model(tokens[1:, 30:31], cache=cache).hidden_BTD)
    close(logits[0, 0], whole(model, tokens)[1, 30])


@torch.inference_mode()
def test_forgetting_the_newest_tokens_takes_them_back(latent_spec, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model = build(latent_spec()).eval()
    cache = StaticCache.allocate(model.spec, batch_size=2, max_length=80)
    model(tokens[:, :40], cache=cache)
    cache.set_lengths([30, 30])
    logits = model.logits(model(tokens[:, 30:31], cache=cache).hidden_BTD)
    close(logits[:, 0], whole(model, tokens)[:, 30])


def test_cache_bytes_are_what_the_paper_says(latent_spec, grouped_spec) -> None:  # type: ignore[no-untyped-def]
    latent = StaticCache.allocate(latent_spec(), batch_size=3, max_length=50)
    assert latent.bytes_per_token == (16 + 4) * 3 * 4
    assert latent.nbytes == latent.bytes_per_token * 3 * 50
    full = StaticCache.allocate(grouped_spec(), batch_size=1, max_length=50, dtype=torch.bfloat16)
    assert full.bytes_per_token == 2 * 2 * 8 * 2 * 2
    assert full.nbytes == full.bytes_per_token * 50
    rolling = StaticCache.allocate(grouped_spec(window=12), batch_size=1, max_length=50)
    assert rolling.nbytes == rolling.bytes_per_token * 12
    short = StaticCache.allocate(grouped_spec(window=12), batch_size=1, max_length=8)
    assert short.nbytes == short.bytes_per_token * 8


def test_outgrowing_the_cache_or_the_context_names_both_numbers(latent_spec) -> None:  # type: ignore[no-untyped-def]
    model = build(latent_spec(max_position_embeddings=64))
    cache = StaticCache.allocate(model.spec, batch_size=1, max_length=8)
    with pytest.raises(ContextError, match="9 more exceed its 8"):
        model(torch.zeros(1, 9, dtype=torch.long), cache=cache)
    assert cache.lengths == [0]
    with pytest.raises(ContextError, match="65 exceed the model's context of 64"):
        model(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(ContextError, match="lengths"):
        cache.set_lengths([9])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 17), min_size=1, max_size=8), st.integers(1, 20))
def test_any_chunks_through_any_window_equal_the_whole(sizes: list[int], window: int) -> None:
    from fathom.spec import GroupedQueryAttention

    spec = ModelSpec(
        name="w",
        family="mistral",
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        attention=GroupedQueryAttention(num_heads=2, num_kv_heads=1, head_dim=4, sliding_window=window),
        max_position_embeddings=256,
        intermediate_size=8,
        initializer_range=0.3,
    )
    model, total = build(spec).eval(), sum(sizes)
    tokens = torch.randint(0, 20, (1, total), generator=torch.Generator().manual_seed(total))
    with torch.inference_mode():
        cache, at, outputs = StaticCache.allocate(spec, batch_size=1, max_length=total), 0, []
        for size in sizes:
            outputs.append(model.logits(model(tokens[:, at : at + size], cache=cache).hidden_BTD))
            at += size
        close(torch.cat(outputs, dim=1), whole(model, tokens))


@torch.inference_mode()
def test_a_rolling_cache_refuses_to_go_back_to_what_it_overwrote(grouped_spec, tokens: Tensor) -> None:  # type: ignore[no-untyped-def]
    model = build(grouped_spec(window=12)).eval()
    cache = StaticCache.allocate(model.spec, batch_size=2, max_length=80)
    model(tokens[:, :12], cache=cache)
    cache.set_lengths([9, 9])
    logits = model.logits(model(tokens[:, 9:14], cache=cache).hidden_BTD)
    close(logits, whole(model, tokens)[:, 9:14])
    with pytest.raises(ContextError, match="cannot go back"):
        cache.set_lengths([13, 14])
