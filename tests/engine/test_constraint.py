"""Constraints meet the sampler: bit order, grammars over random logits, and constraints of neighbours."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import Tensor

from fathom.chat.grammar import GrammarCompiler
from fathom.engine.constraint import TokenConstraint, allowed_tokens
from fathom.engine.sampling.draw import SamplingFailure, SamplingMetadata, distribution, draw, try_draw
from fathom.spec.sampling import SamplingParams
from fathom.tokenizer import Tokenizer, train_bpe

VOCAB = 500  # more than the tokenizer has, as in published models
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "ages": {"type": "array", "items": {"type": "integer"}}},
    "required": ["name", "ages"],
    "additionalProperties": False,
}


class Words:
    """A constraint with its words given."""

    def __init__(self, *words: int) -> None:
        self.words = words

    def fill_bitmask(self, bitmask_W: Tensor) -> bool:
        bitmask_W[:] = torch.tensor(self.words, dtype=torch.int32)
        return bool(self.words)

    def accept(self, token_id: int) -> None:
        pass

    @property
    def finished(self) -> bool:
        return False

    def copy(self) -> TokenConstraint:
        return Words(*self.words)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = ['{"name": "fox", "ages": [1, 22]}\n', "天下大势，分久必合\n", "the quick brown fox\n"] * 4
    return train_bpe(texts, vocab_size=420)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer)


def test_token_i_is_bit_i_of_the_words() -> None:
    allowed = allowed_tokens(Words(1 | 1 << 5, -(2**31), 0b110), 66)
    assert allowed is not None
    assert allowed.nonzero()[:, 0].tolist() == [0, 5, 63, 65]
    assert len(allowed) == 66


def test_a_constraint_that_forbids_nothing_changes_nothing() -> None:
    class Free(Words):
        def fill_bitmask(self, bitmask_W: Tensor) -> bool:
            return False

    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(0))
    free, none = (
        SamplingMetadata(params=SamplingParams(), prompt=(1,), drawn=[], seed=3, constraint=constraint)
        for constraint in (Free(), None)
    )
    assert draw(logits, [free]) == draw(logits, [none])


def answer(tokenizer: Tokenizer, constraint: TokenConstraint, params: SamplingParams, seed: int) -> list[int]:
    """Draw an answer from random logits, a little fond of ends and digits' ends so that it stops."""
    numbers, drawn = torch.Generator().manual_seed(seed), list[int]()
    row = SamplingMetadata(
        params=params,
        prompt=(1,),
        drawn=drawn,
        seed=seed,
        constraint=constraint,
        eos_ids=frozenset({tokenizer.eos_id}),
    )
    fond = [tokenizer.eos_id, *(tokenizer.encode(end)[0] for end in '"],}')]
    while not constraint.finished and len(drawn) < 300:
        logits = torch.randn(VOCAB, generator=numbers) * 2
        logits[fond] += 4
        token = draw(logits[None], [row])[0].token_id
        constraint.accept(token)
        if token != tokenizer.eos_id:
            drawn.append(token)
    assert constraint.finished
    return drawn


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("params", [{}, {"temperature": 0.0}, {"top_p": 0.9, "temperature": 1.5}, {"top_k": 3}])
def test_answers_drawn_from_random_logits_satisfy_their_schema(
    tokenizer: Tokenizer, compiler: GrammarCompiler, params: dict[str, float], seed: int
) -> None:
    ids = answer(tokenizer, compiler.json_schema(SCHEMA), SamplingParams(**params), seed)  # type: ignore[arg-type]
    value = json.loads(tokenizer.decode(ids))
    assert value.keys() == {"name", "ages"}
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 6
    assert all(type(age) is int for age in value["ages"])


def test_answers_drawn_from_random_logits_match_their_pattern(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    for seed in range(12):
        ids = answer(tokenizer, compiler.regex(r"(fox|天下)+, [0-9]{1,3}"), SamplingParams(), seed)
        assert re.fullmatch(r"(fox|天下)+, [0-9]{1,3}", tokenizer.decode(ids))


def test_constrained_and_free_rows_share_a_step(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(4))
    params = SamplingParams(logprobs=1)
    constraints = [None, compiler.regex("the"), compiler.regex("[0-9]{3}")]
    rows = [
        SamplingMetadata(params=params, prompt=(1,), drawn=[], seed=i, constraint=constraint)
        for i, constraint in enumerate(constraints)
    ]
    together = draw(logits, rows)
    assert together == [draw(logits[i : i + 1], [rows[i]])[0] for i in range(3)]
    assert tokenizer.decode([together[1].token_id]) == "the"
    assert tokenizer.decode([together[2].token_id]).isdigit()
    assert together[1].logprob == pytest.approx(float(logits[1].log_softmax(-1)[together[1].token_id]), rel=1e-5)
    assert float(distribution(logits[1], rows[1])[together[1].token_id]) == 1.0


def test_a_complete_text_before_min_tokens_fails_with_a_sentence(
    tokenizer: Tokenizer, compiler: GrammarCompiler
) -> None:
    constraint, ids = compiler.regex("fox"), tokenizer.encode("fox")
    for token in ids:
        constraint.accept(token)
    row = SamplingMetadata(
        params=SamplingParams(min_tokens=9),
        prompt=(1,),
        drawn=ids,
        seed=0,
        constraint=constraint,
        eos_ids=frozenset({tokenizer.eos_id}),
    )
    (failure,) = try_draw(torch.zeros(1, VOCAB), [row])
    assert isinstance(failure, SamplingFailure)
    assert failure.kind == "nothing allowed"
    assert "min_tokens" in failure.message


def test_a_constraint_fed_anew_after_preemption_goes_on_alike(tokenizer: Tokenizer, compiler: GrammarCompiler) -> None:
    ids = answer(tokenizer, compiler.json_schema(SCHEMA), SamplingParams(), 5)
    followed = compiler.json_schema(SCHEMA)
    for count, token in enumerate(ids):
        again = compiler.json_schema(SCHEMA)
        for earlier in ids[:count]:
            again.accept(earlier)
        pair = [allowed_tokens(constraint, VOCAB) for constraint in (again, followed)]
        assert torch.equal(*pair)
        followed.accept(token)
