"""Drafts beside everything else a request may ask for: seeds, grammars, images, rules that break."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fathom.chat.grammar import GrammarCompiler
from fathom.engine import model_runner as forward
from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.engine.sampling.draw import SamplingMetadata, distribution
from fathom.errors import DataError
from fathom.model.decoder import Decoder
from fathom.spec import EngineSpec, SamplingParams, TokenLogprob
from fathom.tokenizer import train_bpe
from tests.engine.drafting import with_mtp
from tests.engine.reference import alone, finish, ids
from tests.engine.test_engine_images import IMAGE, PER_IMAGE, decoder, features

__all__ = ["decoder"]  # a fixture

SPEC = EngineSpec(page_size=4, cache_tokens=400, drafting="mtp", draft_tokens=3)
GREEDY = SamplingParams(max_tokens=24, temperature=0)
VOCAB, START = 4, (1, 2)


@torch.inference_mode()
def chances(model: Decoder) -> np.ndarray:
    """Return the probability of each next two tokens, (V, V), by definition."""
    row = SamplingMetadata(params=SamplingParams(), prompt=START, drawn=(), seed=0)
    first_V = distribution(model.logits(model(torch.tensor([START])).hidden_BTD[0, -1]), row)
    both = torch.tensor([[*START, token] for token in range(VOCAB)])
    return (first_V[:, None] * model.logits(model(both).hidden_BTD[:, -1]).double().softmax(-1)).numpy()


def chi_square(model: Decoder, count: int = 1200) -> float:
    """How far the second and third tokens' frequencies are from the model's, which are drawn with drafts."""
    engine = Engine(model, spec=replace(SPEC, draft_tokens=2))
    params = [SamplingParams(max_tokens=4, seed=seed) for seed in range(count)]
    seen = np.zeros((VOCAB, VOCAB))
    for completion in engine.sample([START] * count, params):
        seen[completion.token_ids[:2]] += 1
    assert engine.stats.accepted > count / 8
    wanted = chances(model) * count
    return float(((seen - wanted) ** 2 / wanted).sum())


def test_drawn_tokens_are_distributed_as_the_model_says() -> None:
    assert chi_square(with_mtp(0.05, VOCAB)) < 38.0  # the 99.9th percentile for 15 degrees of freedom


def test_the_chi_square_test_sees_drafts_that_are_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    def believe(drawn: Sequence[TokenLogprob], drafts: Sequence[int]) -> list[TokenLogprob]:
        return [*(TokenLogprob(draft, 0.0) for draft in drafts), drawn[-1]]

    monkeypatch.setattr(forward, "accept_drafts", believe)
    assert chi_square(with_mtp(0.05, VOCAB)) > 100.0


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_a_seed_draws_the_same_with_drafts_and_without(temperature: float) -> None:
    model = with_mtp(0.05)
    params = [
        SamplingParams(max_tokens=20, temperature=temperature, seed=seed, frequency_penalty=0.2, min_p=0.02)
        for seed in range(8)
    ]
    engine = Engine(model, spec=SPEC)
    for one, completion in zip(params, engine.sample([START] * 8, params), strict=True):
        expected = alone(model, Request(prompt=START, params=one))
        assert list(completion.token_ids) == [token.token_id for token in expected]
        assert completion.logprobs == pytest.approx([token.logprob for token in expected], abs=1e-5)
    assert engine.stats.accepted > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_holds_and_drafts_it_forbids_are_not_tried(temperature: float) -> None:
    tokenizer = train_bpe(["ab ba abc\n"] * 4, vocab_size=300)
    model, compiler = with_mtp(0.05, tokenizer.vocab_size), GrammarCompiler(tokenizer)
    asked = SamplingParams(max_tokens=24, temperature=temperature, seed=3)
    expression = "(ab){4,6}[0-9]{3}c"
    answers = []
    for drafting in ("none", "ngram", "mtp"):
        engine = Engine(model, spec=replace(SPEC, drafting=drafting))  # type: ignore[arg-type]
        prompt = tuple(tokenizer.encode("abababab"))
        name = engine.submit(Request(prompt=prompt, params=asked, constraint=compiler.regex(expression)))
        answers.append(ids(finish(engine)[name]))
        if drafting == "ngram":
            assert engine.stats.accepted > 0
    assert answers[0] == answers[1] == answers[2]
    assert re.fullmatch(expression, tokenizer.decode(answers[0]))


class Tiring:
    """A rule that allows anything, a number of times."""

    def __init__(self, left: int, *, breaks: type[Exception]) -> None:
        self.left, self.breaks = left, breaks

    def fill_bitmask(self, bitmask_W: Tensor) -> bool:
        if self.left <= 0 and self.breaks is DataError:
            raise DataError("too tired to go on")
        return False

    def accept(self, token_id: int) -> None:
        if self.left <= 0:
            raise self.breaks("too tired to go on")
        self.left -= 1

    @property
    def finished(self) -> bool:
        return False

    def copy(self) -> Tiring:
        return Tiring(self.left, breaks=self.breaks)


@pytest.mark.parametrize("left", range(1, 7))
@pytest.mark.parametrize("breaks", [DataError, ValueError])
def test_a_rule_that_breaks_among_drafts_ends_its_request_where_it_would_without(
    left: int, breaks: type[Exception]
) -> None:
    model, answers = with_mtp(0.0), []
    for drafting in ("none", "mtp"):
        engine = Engine(model, spec=replace(SPEC, drafting=drafting))  # type: ignore[arg-type]
        tired = engine.submit(Request(prompt=START, params=GREEDY, constraint=Tiring(left, breaks=breaks)))
        other = engine.submit(Request(prompt=(3,), params=GREEDY))
        outputs = finish(engine)
        answers.append((ids(outputs[tired]), outputs[tired][-1].error, ids(outputs[other])))
        assert outputs[other][-1].finish_reason == "length"
    assert answers[0] == answers[1]
    assert "too tired" in str(answers[0][1])
    assert len(answers[0][0]) == left


def test_a_drafted_image_token_is_a_token_like_any_other(decoder: Decoder) -> None:
    prompt = [1, *[IMAGE] * PER_IMAGE, 2, *[IMAGE] * PER_IMAGE, 3]
    asked = SamplingParams(max_tokens=12, temperature=0.0, logit_bias=((IMAGE, 100.0),))
    given = features(decoder, 2, 1)
    answers = []
    for drafting in ("none", "ngram"):
        engine = Engine(decoder, spec=EngineSpec(page_size=4, drafting=drafting, draft_tokens=3))  # type: ignore[arg-type]
        (completion,) = engine.sample([prompt], asked, features=[given])
        answers.append(completion.token_ids)
        logprobs = completion.logprobs
    assert answers == [(IMAGE,) * 12] * 2
    assert engine.stats.accepted > 0
    plain = Engine(decoder).sample([prompt], asked, features=[given])[0]
    assert logprobs == pytest.approx(plain.logprobs, abs=1e-4)
