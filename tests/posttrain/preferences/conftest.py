"""A tiny decoder, and pairs of token ids a model can learn to tell apart."""

from __future__ import annotations

import random

import pytest

from fathom.data.conversations.loss_mask import Sample
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.posttrain.preferences import PreferencePair
from fathom.spec import GroupedQueryAttention, ModelSpec

SPEC = ModelSpec(
    name="tiny",
    family="llama",
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=2,
    attention=GroupedQueryAttention(num_heads=4, num_kv_heads=2, head_dim=8),
    max_position_embeddings=64,
    intermediate_size=48,
    initializer_range=0.2,
)


@pytest.fixture
def model() -> Decoder:
    return build(SPEC, seed=3)


@pytest.fixture
def pairs() -> list[PreferencePair]:
    """Twelve prompts of 2 to 6 tokens; good answers go up, bad ones go down."""
    draw, made = random.Random(5), []
    for number in range(12):
        prompt = [draw.randrange(3, 60) for _ in range(draw.randrange(2, 7))]
        first, length = draw.randrange(10, 50), draw.randrange(2, 6)
        up, down = ([first + sign * step for step in range(length)] for sign in (1, -1))
        chosen, rejected = (
            Sample([*prompt, *answer], [False] * len(prompt) + [True] * len(answer)) for answer in (up, [*down, 2])
        )
        made.append(PreferencePair(chosen=chosen, rejected=rejected, prompt=str(number)))
    return made
