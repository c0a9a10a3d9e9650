"""Real weights: SmolLM2-135M-Instruct's GGUF file, read by us and by transformers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from fathom.chat import encode_chat
from fathom.checkpoint.gguf import GGUFFile
from fathom.evals.bits_per_byte import bits_per_byte
from fathom.evals.perplexity import perplexity
from fathom.inference.language_model import LanguageModel
from fathom.plan import count_parameters
from fathom.spec import GroupedQueryAttention, SamplingParams

pytestmark = pytest.mark.slow  # transformers takes a quarter of a minute to read the file


def test_the_spec_is_that_of_the_published_model(file: Path) -> None:
    source = GGUFFile.open(file)
    spec = source.spec
    assert count_parameters(spec).total == 134_515_008
    assert spec.attention == GroupedQueryAttention(num_heads=9, num_kv_heads=3, head_dim=64)
    assert (spec.num_hidden_layers, spec.hidden_size, spec.intermediate_size) == (30, 576, 1536)
    assert (spec.vocab_size, spec.max_position_embeddings, spec.tie_word_embeddings) == (49_152, 8192, True)
    assert (spec.rope.theta, spec.bos_token_id, spec.eos_token_id) == (100_000, 1, 2)
    assert 2 in source.eos_ids
    kinds = [entry.kind for entry in source.stored]
    assert (kinds.count("Q4_1"), kinds.count("F32"), kinds.count("Q8_0")) == (210, 61, 1)


def test_logits_equal_transformers_reading_of_the_file(model: LanguageModel, oracle) -> None:
    ids = model.tokenizer.encode(oracle.text)
    assert ids == oracle.ids["text"]
    assert len(ids) > 250
    torch.testing.assert_close(model.logits(ids), oracle.logits_TV, atol=1e-3, rtol=0)


def test_perplexity_equals_that_of_transformers_logits(model: LanguageModel, oracle) -> None:
    ids = torch.tensor(oracle.ids["text"])
    measured = bits_per_byte(model.model, ids, text_bytes=len(oracle.text.encode()), context=512)
    expected = math.exp(float(F.cross_entropy(oracle.logits_TV[:-1], ids[1:])))
    assert math.isclose(perplexity(measured), expected, rel_tol=1e-4)
    assert expected < 60  # it has learned English: the file was read, not merely read alike


def test_chats_have_the_same_ids_and_greedy_answers(model: LanguageModel, oracle) -> None:
    params = SamplingParams(max_tokens=oracle.new_tokens, temperature=0)
    prompts = [encode_chat(model.tokenizer, chat) for chat in oracle.chats]
    assert prompts == oracle.ids["prompts"]
    completions = model.engine.sample(prompts, params)
    for completion, expected in zip(completions, oracle.ids["answers"], strict=True):
        ended = completion.finish_reason == "stop"
        assert [*completion.token_ids, *([model.tokenizer.eos_id] if ended else [])] == expected
    assert list(model.stream(prompts[0], params)) == list(completions[0].token_ids)
    assert "Paris" in model.tokenizer.decode(completions[0].token_ids)
    assert completions[0].finish_reason == "stop"


def test_texts_have_the_same_ids_and_come_back_whole(model: LanguageModel, oracle) -> None:
    tokenizer = model.tokenizer
    assert [tokenizer.encode(text) for text in oracle.texts] == oracle.ids["texts"]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in oracle.texts] == list(oracle.texts)
    assert [*tokenizer.prefix_ids, *tokenizer.encode("The capital of France is")] == oracle.ids["plain"]


def test_numerals_beyond_ascii_follow_the_files_own_rule(model: LanguageModel, oracle) -> None:
    """The file names its pre-tokenizer, which sets every numeral apart; transformers ignores it and joins the space."""
    tokenizer = model.tokenizer
    ours = tokenizer.encode("x ½")
    assert ours == [*tokenizer.encode("x"), *tokenizer.encode(" "), *tokenizer.encode("½")]
    assert ours != oracle.ids["halves"]
    assert tokenizer.decode(oracle.ids["halves"]) == "x ½"
