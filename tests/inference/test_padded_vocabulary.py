"""A model opened with its tokenizer samples only what the tokenizer has a token for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fathom.inference.language_model import LanguageModel
from fathom.model.build import build
from fathom.spec import GroupedQueryAttention, ModelSpec, SamplingParams
from fathom.tokenizer import Tokenizer

PADDING = 60


@pytest.fixture(scope="module")
def padded(tokenizer: Tokenizer) -> LanguageModel:
    """A model with more ids than the tokenizer has tokens, which it finds the likeliest of all."""
    spec = ModelSpec(
        name="tiny",
        family="llama",
        vocab_size=tokenizer.vocab_size + PADDING,
        hidden_size=16,
        num_hidden_layers=1,
        attention=GroupedQueryAttention(num_heads=2, num_kv_heads=2, head_dim=8),
        max_position_embeddings=128,
        intermediate_size=24,
        initializer_range=0.3,
    )
    model = build(spec, seed=4)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.vocab_size :] *= 10
    return LanguageModel(model, tokenizer, Path("tiny"), frozenset({tokenizer.eos_id}))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_that_pad_the_vocabulary_are_never_sampled(
    padded: LanguageModel, tokenizer: Tokenizer, temperature: float
) -> None:
    prompt = tokenizer.encode("The answer")
    likeliest = int(padded.logits(prompt)[-1].argmax())
    assert likeliest >= tokenizer.vocab_size
    for seed in range(4):
        answer = padded.generate(prompt, SamplingParams(max_tokens=20, temperature=temperature, seed=seed))
        assert answer
        assert max(answer) < tokenizer.vocab_size
    unpadded = LanguageModel(padded.model, None, Path("tiny"), frozenset())
    ids = unpadded.generate(prompt, SamplingParams(max_tokens=20, temperature=temperature, seed=0))
    assert max(ids) >= tokenizer.vocab_size
