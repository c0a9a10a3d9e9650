"""Bits per byte against scoring every token by its own forward pass."""

from __future__ import annotations

import math

import pytest
import torch

from fathom.errors import DataError, SpecError
from fathom.evals.bits_per_byte import bits_per_byte
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.spec import GroupedQueryAttention, ModelSpec


def model() -> Decoder:
    spec = ModelSpec(
        name="tiny",
        family="llama",
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        attention=GroupedQueryAttention(num_heads=2, num_kv_heads=1, head_dim=8),
        max_position_embeddings=16,
        intermediate_size=24,
        initializer_range=0.4,
    )
    return build(spec, seed=1)


def oracle(decoder: Decoder, tokens: torch.Tensor, context: int, stride: int) -> float:
    """Nats of every token but the first, each predicted from the window that scores it."""
    nats = 0.0
    for target in range(1, len(tokens)):
        start = 0 if target <= context else math.ceil((target - context) / stride) * stride
        with torch.no_grad():
            logits = decoder.logits(decoder(tokens[None, start:target]).hidden_BTD[0, -1])
        nats -= float(logits.log_softmax(-1)[tokens[target]])
    return nats


@pytest.mark.parametrize("count", [2, 8, 9, 10, 12, 13, 40, 41, 47])
@pytest.mark.parametrize(("context", "stride"), [(8, 4), (8, 8), (8, 3), (16, 1)])
def test_every_token_is_scored_once_with_its_context(count: int, context: int, stride: int) -> None:
    decoder = model()
    tokens = torch.randint(0, 30, (count,), generator=torch.Generator().manual_seed(count))
    result = bits_per_byte(decoder, tokens, text_bytes=100, context=context, stride=stride, batch_size=3)
    expected = oracle(decoder, tokens, context, stride)
    assert result.nats == pytest.approx(expected, rel=1e-5)
    assert result.tokens == count - 1
    assert result.value == pytest.approx(expected / math.log(2) / 100, rel=1e-5)


def test_uniform_predictions_cost_the_logarithm_of_the_vocabulary() -> None:
    decoder = model()
    torch.nn.init.zeros_(decoder.lm_head.weight)
    result = bits_per_byte(decoder, torch.arange(25), text_bytes=48, context=8)
    assert result.value == pytest.approx(24 * math.log2(30) / 48)


def test_training_mode_is_given_back() -> None:
    decoder = model().train()
    bits_per_byte(decoder, torch.arange(9), text_bytes=9, context=8)
    assert decoder.training


def test_what_cannot_be_measured_is_refused() -> None:
    decoder = model()
    with pytest.raises(SpecError, match="17 tokens, but the model has 16"):
        bits_per_byte(decoder, torch.arange(20), text_bytes=9, context=17)
    with pytest.raises(SpecError, match="stride"):
        bits_per_byte(decoder, torch.arange(20), text_bytes=9, context=8, stride=9)
    with pytest.raises(DataError, match="too short"):
        bits_per_byte(decoder, torch.arange(1), text_bytes=9, context=8)
