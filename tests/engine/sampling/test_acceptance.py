"""Drafts change how fast tokens come, never which: token for token, and in distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fathom.chat.grammar import GrammarCompiler
from fathom.engine.sampling.acceptance import accept_drafts, draft_metadata
from fathom.engine.sampling.draw import SamplingMetadata, distribution, draw
from fathom.spec.sampling import SamplingParams, TokenLogprob
from fathom.tokenizer import train_bpe

VOCAB = 5
TABLE = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(8)) * 1.2
Rule = Callable[[Sequence[TokenLogprob], Sequence[int]], list[TokenLogprob]]


def logits_after(tokens: Sequence[int]) -> Tensor:
    """A model that looks at the last token only."""
    return TABLE[tokens[-1]]


def plain(row: SamplingMetadata, count: int) -> list[int]:
    tokens = list(row.drawn)
    for _ in range(count):
        later = row.with_drafts(tokens[len(row.drawn) :], None)
        tokens.append(draw(logits_after([*row.prompt, *tokens])[None], [later])[0].token_id)
    return tokens


def drafted(
    row: SamplingMetadata, count: int, drafts: Sequence[Sequence[int]], rule: Rule = accept_drafts
) -> tuple[list[int], int]:
    """Draw ``count`` tokens with drafts given step by step; return them and the steps it took."""
    tokens, steps = list[int](), 0
    while len(tokens) < count:
        rows = draft_metadata(row.with_drafts(tokens, None), drafts[steps % len(drafts)] if drafts else ())
        tried = list(rows[-1].drawn[len(tokens) :])
        logits = torch.stack([logits_after([*row.prompt, *r.drawn]) for r in rows])
        tokens += [token.token_id for token in rule(draw(logits, rows), tried)]
        steps += 1
    return tokens[:count], steps


@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.0, 0.8, 1.5]),
    top_p=st.sampled_from([0.7, 1.0]),
    drafts=st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=4), min_size=1, max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_drafts_change_no_token(seed: int, temperature: float, top_p: float, drafts: list[list[int]]) -> None:
    params = SamplingParams(temperature=temperature, top_p=top_p, frequency_penalty=0.3)
    row = SamplingMetadata(params=params, prompt=(2,), drawn=(), seed=seed)
    tokens, _ = drafted(row, 8, drafts)
    assert tokens == plain(row, 8)


def test_right_drafts_save_steps() -> None:
    row = SamplingMetadata(params=SamplingParams(temperature=0.0), prompt=(2,), drawn=(), seed=0)
    wanted = plain(row, 8)
    tokens, steps = drafted(row, 8, [wanted[:3], wanted[4:7]])
    assert (tokens, steps) == (wanted, 2)
    assert drafted(row, 8, [])[1] == 8


def redraws_the_refused_too() -> Rule:
    """Return the wrong rule: a draft is taken with its probability, but a refused one may be drawn again."""
    numbers = np.random.default_rng(0)

    def rule(drawn: Sequence[TokenLogprob], drafts: Sequence[int]) -> list[TokenLogprob]:
        if not drafts or drawn[0].token_id == drafts[0]:
            return accept_drafts(drawn, drafts)
        shares = TABLE[2].double().softmax(-1).numpy()
        return [TokenLogprob(int(numbers.choice(VOCAB, p=shares)), 0.0)]

    return rule


def chi_square(rule: Rule, draft: int, count: int = 1500) -> float:
    """How far the first two tokens' frequencies are from the target, in units of 24 degrees of freedom."""
    params = SamplingParams()
    seen = np.zeros((VOCAB, VOCAB))
    for seed in range(count):
        row = SamplingMetadata(params=params, prompt=(2,), drawn=(), seed=seed)
        (first, second), _ = drafted(row, 2, [[draft, 1], [draft]], rule)
        seen[first, second] += 1
    start = SamplingMetadata(params=params, prompt=(2,), drawn=(), seed=0)
    first_V = distribution(TABLE[2], start)
    wanted = (first_V[:, None] * torch.stack([distribution(TABLE[i], start) for i in range(VOCAB)])).numpy() * count
    return float(((seen - wanted) ** 2 / wanted).sum())


@pytest.mark.parametrize("draft", [0, 3])
def test_frequencies_are_the_targets_whatever_is_drafted(draft: int) -> None:
    assert chi_square(accept_drafts, draft) < 54.0  # the 99.96th percentile for 24 degrees of freedom


def test_the_chi_square_test_sees_a_wrong_rule() -> None:
    assert chi_square(redraws_the_refused_too(), 3) > 100.0
    assert chi_square(lambda drawn, drafts: accept_drafts(drawn, drafts)[:1] * 2, 3) > 100.0


def test_drafts_end_before_an_end_and_where_the_grammar_forbids() -> None:
    row = SamplingMetadata(
        params=SamplingParams(stop_token_ids=(4,)), prompt=(0,), drawn=[1], seed=0, eos_ids=frozenset({3})
    )
    assert [list(r.drawn) for r in draft_metadata(row, [2, 2, 3, 2])] == [[1], [1, 2], [1, 2, 2]]
    assert len(draft_metadata(row, [4, 2])) == 1
    ignoring = SamplingMetadata(
        params=SamplingParams(ignore_eos=True), prompt=(0,), drawn=[1], seed=0, eos_ids=frozenset({3})
    )
    assert len(draft_metadata(ignoring, [2, 3, 2])) == 4

    tokenizer = train_bpe(["ab ba abc\n"] * 4, vocab_size=300)
    a, b, c = (tokenizer.encode(letter)[0] for letter in "abc")
    constraint = GrammarCompiler(tokenizer).regex("ab[ab]")
    rows = draft_metadata(
        SamplingMetadata(params=SamplingParams(), prompt=(0,), drawn=[], seed=0, constraint=constraint), [a, b, c, a]
    )
    assert [list(r.drawn) for r in rows] == [[], [a], [a, b]]
    constraint.accept(a)  # the request's own constraint accepted none of the drafts
    tokens = [draw(torch.zeros(1, tokenizer.vocab_size), [rows[2]])[0].token_id for _ in range(3)]
    assert set(tokens) <= {a, b}
