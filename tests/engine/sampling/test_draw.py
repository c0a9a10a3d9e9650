"""Each filter and penalty against its definition written out, and draws that depend on nothing but their own row."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fathom.engine.constraint import TokenConstraint
from fathom.engine.sampling import softmax_rows
from fathom.engine.sampling.draw import (
    SamplingFailure,
    SamplingMetadata,
    distribution,
    draw,
    fresh_seed,
    prompt_logprobs,
    try_draw,
    uniform,
)
from fathom.engine.sampling.filters import masses, sample_filtered, sample_unfiltered_rows, top_k_ids, weights
from fathom.errors import DataError
from fathom.spec.sampling import SamplingParams

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, 3.0])


class Only:
    """A constraint that allows the same few tokens for ever."""

    def __init__(self, *allowed: int) -> None:
        self.allowed = allowed

    def fill_bitmask(self, bitmask_W: Tensor) -> bool:
        for token in self.allowed:
            bitmask_W[token // 32] |= -(2**31) if token % 32 == 31 else 1 << token % 32
        return True

    def accept(self, token_id: int) -> None:
        pass

    @property
    def finished(self) -> bool:
        return False

    def copy(self) -> TokenConstraint:
        return self


def row(params: SamplingParams | None = None, **fields: Any) -> SamplingMetadata:
    return SamplingMetadata(**{"params": params or SamplingParams(), "prompt": (0,), "drawn": [], "seed": 0} | fields)


def plain(logits: Tensor, r: SamplingMetadata) -> np.ndarray:
    """The whole definition, token by token."""
    p, drawn = r.params, list(r.drawn)
    values = [float(v) for v in logits]
    for token in {*r.prompt, *drawn}:
        values[token] = (
            values[token] / p.repetition_penalty if values[token] > 0 else (values[token] * p.repetition_penalty)
        )
    for token, count in Counter(drawn).items():
        values[token] -= p.presence_penalty + p.frequency_penalty * count
    for token, bias in p.logit_bias:
        values[token] += bias
    if len(drawn) < p.min_tokens:
        for token in {*r.eos_ids, *p.stop_token_ids}:
            values[token] = -math.inf
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    if p.temperature == 0:
        return np.eye(len(values))[order[0]]
    order = order[: p.top_k or None]
    shares = {i: math.exp((values[i] - values[order[0]]) / p.temperature) for i in order}
    total, before, kept = sum(shares.values()), 0.0, {}
    for i in order:
        if before < p.top_p * total and shares[i] >= p.min_p * shares[order[0]]:
            kept[i] = shares[i]
        before += shares[i]
    return np.array([kept.get(i, 0.0) / sum(kept.values()) for i in range(len(values))])


def survivors(params: SamplingParams) -> dict[int, float]:
    return {i: p for i, p in enumerate(distribution(LOGITS, row(params)).tolist()) if p > 0}


def softmax(values: dict[int, float]) -> dict[int, float]:
    total = sum(math.exp(v) for v in values.values())
    return {i: math.exp(v) / total for i, v in values.items()}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    expected = softmax({i: float(v) / temperature for i, v in enumerate(LOGITS)})
    assert survivors(SamplingParams(temperature=temperature)) == pytest.approx(expected, rel=1e-5)


def test_top_k_keeps_the_k_best() -> None:
    assert survivors(SamplingParams(top_k=2)) == pytest.approx(softmax({4: 3.0, 0: 2.0}), rel=1e-5)
    assert len(survivors(SamplingParams(top_k=99))) == 5


def test_min_p_drops_what_is_far_below_the_best() -> None:
    assert set(survivors(SamplingParams(min_p=0.2))) == {4, 0}  # exp(-1) = 0.37 stays, exp(-2) = 0.14 goes


filters = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.8]),
        "top_k": st.sampled_from([0, 1, 2, 5, 11, 40]),
        "top_p": st.sampled_from([1e-9, 0.13, 0.5, 0.9, 0.99, 1.0]),
        "min_p": st.sampled_from([0.0, 0.02, 0.3, 1.0]),
        "repetition_penalty": st.sampled_from([0.5, 1.0, 1.3]),
        "presence_penalty": st.sampled_from([-0.7, 0.0, 0.9]),
        "frequency_penalty": st.sampled_from([-0.4, 0.0, 0.6]),
        "logit_bias": st.sampled_from([(), ((3, 2.5), (4, -1.0)), ((1, 100.0),), ((0, -100.0), (0, 1.5))]),
        "min_tokens": st.sampled_from([0, 3]),
    },
)


@given(params=filters, seed=st.integers(0, 999), drawn=st.lists(st.integers(0, 11), max_size=6))
@settings(max_examples=200, deadline=None)
def test_the_distribution_is_the_definition_written_out(params: dict[str, Any], seed: int, drawn: list[int]) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(seed)) * 3
    r = row(SamplingParams(**params, stop_token_ids=(2,)), prompt=(5, 6), drawn=drawn, eos_ids=frozenset({7}))
    np.testing.assert_allclose(distribution(logits, r).numpy(), plain(logits, r), atol=2e-6)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.6},
        {"top_p": 0.7},
        {"top_p": 0.3, "temperature": 1.5},
        {"top_k": 4},
        {"top_k": 5, "top_p": 0.6, "min_p": 0.2},
        {"min_p": 0.1, "top_p": 0.9},
        {"min_p": 0.4},
        {"frequency_penalty": 0.5, "logit_bias": ((3, 1.0),), "top_p": 0.8},
    ],
)
@pytest.mark.parametrize("ties", [False, True])
def test_frequencies_follow_the_distribution(params: dict[str, Any], ties: bool) -> None:
    logits = torch.randn(9, generator=torch.Generator().manual_seed(5)) * 1.5
    logits = logits.round() if ties else logits
    count, p = 3000, SamplingParams(**params)
    tokens = draw(logits.expand(count, -1), [row(p, seed=seed, drawn=[1, 1, 2]) for seed in range(count)])
    seen = np.bincount([token.token_id for token in tokens], minlength=9)
    wanted = plain(logits, row(p, drawn=[1, 1, 2])) * count
    assert not seen[wanted == 0].any()
    wide = wanted > 0
    chi = float(((seen[wide] - wanted[wide]) ** 2 / wanted[wide]).sum())
    assert chi < 27.9  # the 99.95th percentile for 8 degrees of freedom


@pytest.mark.parametrize("vocab", [700, 5003])
@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"top_p": 0.2}, {"top_k": 7}, {"top_k": 3, "min_p": 0.05}])
def test_a_large_vocabulary_is_drawn_from_by_its_cumulated_shares(vocab: int, params: dict[str, Any]) -> None:
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(1)).double().mul(4).float()
    p = SamplingParams(**params)
    wanted = plain(logits, row(p))
    ends = wanted.cumsum()
    count, hits = 400, 0
    tokens = [t.token_id for t in draw(logits.expand(count, -1), [row(p, seed=seed) for seed in range(count)])]
    assert all(wanted[token] > 0 for token in tokens)
    for seed, token in enumerate(tokens):
        number = uniform(seed, 0, 0)
        hits += ends[token] - wanted[token] - 1e-5 <= number < ends[token] + 1e-5
    assert hits == count or "top_p" in params  # top_p may draw again, by further numbers
    thirds = np.searchsorted(ends, [1 / 3, 2 / 3])
    parts = np.bincount(np.searchsorted(thirds, tokens), minlength=3) / count
    shares = np.diff([0.0, *ends[thirds], 1.0])
    np.testing.assert_allclose(parts, shares, atol=0.09)


@given(seed=st.integers(0, 99), count=st.sampled_from([1, 2, 15, 40, 300]), coarse=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_leading_values_are_those_of_a_stable_sort(seed: int, count: int, coarse: bool) -> None:
    values = torch.randn(5003, generator=torch.Generator().manual_seed(seed))
    values = values.mul(2).round().clamp(max=0.0) if coarse else values  # many ties, zeros of both signs among them
    assert top_k_ids(values, count).tolist() == values.sort(descending=True, stable=True).indices[:count].tolist()


@pytest.mark.parametrize("vocab", [3, 256, 700, 5003])
def test_the_ends_of_the_random_numbers_are_the_ends_of_what_may_be_drawn(vocab: int) -> None:
    for seed in range(30):
        logits = torch.randn(vocab, generator=torch.Generator().manual_seed(seed))
        logits[: vocab // 3], logits[-(vocab // 3) :] = -torch.inf, -torch.inf
        best = float(logits.max())
        for number, token in ((0.0, vocab // 3), (1 - 2.0**-53, vocab - vocab // 3 - 1)):
            picked = sample_filtered(logits, best, SamplingParams(), lambda _, number=number: number)
            assert picked == token


def test_a_narrow_top_p_takes_few_random_numbers() -> None:
    logits = torch.randn(5003, generator=torch.Generator().manual_seed(0)) / 10
    for seed in range(20):
        asked: list[int] = []

        def number(trial: int, seed: int = seed, asked: list[int] = asked) -> float:
            asked.append(trial)
            return uniform(seed, trial)

        assert sample_filtered(logits, float(logits.max()), SamplingParams(top_p=1e-9), number) == int(logits.argmax())
        assert asked == list(range(len(asked)))
        assert len(asked) < 40


def test_ties_go_to_the_lowest_ids() -> None:
    tied = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0])
    assert draw(tied[None], [row(SamplingParams(temperature=0.0))])[0].token_id == 1
    assert set(distribution(tied, row(SamplingParams(top_k=2))).nonzero()[:, 0].tolist()) == {1, 2}
    assert set(distribution(tied, row(SamplingParams(top_p=0.3))).nonzero()[:, 0].tolist()) == {1, 2}
    assert {draw(tied[None], [row(SamplingParams(top_p=0.3), seed=i)])[0].token_id for i in range(40)} == {1, 2}


@given(order=st.permutations(range(6)), position=st.integers(0, 40), size=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_a_draw_depends_on_its_own_row_alone(order: list[int], position: int, size: int) -> None:
    logits = torch.randn(6, 700, generator=torch.Generator().manual_seed(position))
    kinds = [{}, {"temperature": 0.0}, {"top_p": 0.8}, {"top_k": 20}, {"frequency_penalty": 0.3}, {"min_p": 0.1}]
    drawn = list(range(position))
    rows = [row(SamplingParams(**kind, logprobs=2), seed=i, drawn=drawn) for i, kind in enumerate(kinds)]
    alone = [draw(logits[i : i + 1], [rows[i]])[0] for i in range(6)]
    some = order[:size]
    assert draw(logits[some], [rows[i] for i in some]) == [alone[i] for i in some]
    again = row(rows[some[0]].params, seed=some[0], drawn=tuple(drawn))  # a request that was preempted and fed anew
    assert draw(logits[some[:1]], [again])[0] == alone[some[0]]


@given(
    vocab=st.sampled_from([3, 255, 256, 257, 700, 5003]),
    temperatures=st.lists(st.sampled_from([0.0, 1e-6, 0.3, 0.7, 1.0, 1.0, 1.8]), min_size=1, max_size=9),
    seed=st.integers(0, 999),
    kind=st.sampled_from(["spread", "ties", "few"]),
)
@settings(max_examples=150, deadline=None)
def test_rows_that_are_drawn_together_are_drawn_as_each_is_alone(
    vocab: int, temperatures: list[float], seed: int, kind: str
) -> None:
    logits = torch.randn(len(temperatures), vocab, generator=torch.Generator().manual_seed(seed)) * 3
    if kind == "ties":
        logits = logits.round()
    if kind == "few":
        logits[:, 2:], logits[:, vocab // 2] = -torch.inf, 1.0
    rows = [row(SamplingParams(temperature=t), seed=seed + i, drawn=[0] * i) for i, t in enumerate(temperatures)]
    together = draw(logits, rows)
    for i, (token, r) in enumerate(zip(together, rows, strict=True)):
        best = float(logits[i].max())
        number = partial(uniform, r.seed, i)
        wanted = sample_filtered(logits[i], best, r.params, number) if r.params.temperature else int(logits[i].argmax())
        assert token.token_id == wanted
        assert token.logprob == pytest.approx(float(logits[i].double().log_softmax(-1)[wanted]), abs=1e-6)
        assert draw(logits[i : i + 1], [r]) == [token]


@pytest.mark.parametrize("vocab", [3, 256, 700, 5003])
@pytest.mark.parametrize("cut", [True, False])
def test_rows_are_picked_from_at_the_ends_of_their_shares_too(vocab: int, cut: bool) -> None:
    logits = torch.randn(40, vocab, generator=torch.Generator().manual_seed(0))
    if cut:
        logits[:, : vocab // 3], logits[:, -(vocab // 3) :] = -torch.inf, -torch.inf
    shares = weights(logits, logits.amax(-1, keepdim=True), 1)
    share = shares[:, : vocab // 2].double().sum(-1) / shares.double().sum(-1)
    ends = [0.0] + [1 - 2.0**-53] * 19
    numbers = [*ends, *share[20:].tolist()]  # both ends, and where one token's share ends
    picked = sample_unfiltered_rows(shares, masses(shares), numbers).tolist()
    assert picked[:20] == ([vocab // 3] + [vocab - vocab // 3 - 1] * 19 if cut else [0] + [vocab - 1] * 19)
    for logits_V, number, token in zip(logits, numbers, picked, strict=True):
        assert token == sample_filtered(
            logits_V, float(logits_V.max()), SamplingParams(), lambda _, number=number: number
        )


def test_rows_that_do_not_fit_together_are_drawn_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 300, generator=torch.Generator().manual_seed(0))
    rows = [row(seed=i) for i in range(7)]
    whole = draw(logits, rows)
    for room in (1, 600, 900):
        monkeypatch.setattr(softmax_rows, "_TOGETHER", room)
        assert draw(logits, rows) == whole


def test_random_numbers_are_spread_and_differ_by_seed_position_and_trial() -> None:
    numbers = np.array([uniform(seed, position) for seed in range(60) for position in range(60)])
    assert len(set(numbers)) == 3600
    assert np.histogram(numbers, bins=10, range=(0, 1))[0].min() > 290
    columns = numbers.reshape(60, 60)
    assert abs(np.corrcoef(columns[:, :-1].ravel(), columns[:, 1:].ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(columns[:-1].ravel(), columns[1:].ravel())[0, 1]) < 0.05
    assert len({uniform(1, 2), uniform(2, 1), uniform(1, 2, 0), uniform(1, 2, 1), uniform(-1, 2)}) == 5
    assert all(0 <= uniform(seed, 0) < 1 for seed in (-(2**70), -1, 2**64 - 1, 2**200))
    assert fresh_seed() != fresh_seed()


def test_logprobs_are_of_the_unfiltered_softmax_whatever_was_done_to_the_logits() -> None:
    params = SamplingParams(temperature=0.3, top_k=2, logit_bias=((3, 50.0),), logprobs=3)
    token = draw(LOGITS[None], [row(params)])[0]
    wanted = LOGITS.double().log_softmax(-1)
    assert token.token_id == 3
    assert token.logprob == pytest.approx(float(wanted[3]), rel=1e-6)
    assert [i for i, _ in token.top] == [4, 0, 1]
    assert [v for _, v in token.top] == pytest.approx(wanted[[4, 0, 1]].tolist(), rel=1e-6)


def test_a_prompts_logprobs_are_of_the_tokens_that_followed() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    given = prompt_logprobs(logits, torch.tensor([4, 0, 2]), 2)
    wanted = logits.double().log_softmax(-1)
    assert [t.token_id for t in given] == [4, 0, 2]
    assert [t.logprob for t in given] == pytest.approx([float(wanted[i, t]) for i, t in enumerate((4, 0, 2))], rel=1e-5)
    assert [[i for i, _ in t.top] for t in given] == wanted.topk(2).indices.tolist()
    assert prompt_logprobs(logits, torch.tensor([4, 0, 2]), 0)[1].top == ()


def test_ends_wait_for_min_tokens_unless_they_are_none() -> None:
    logits = torch.tensor([0.0, 9.0, 8.0, 1.0])
    params = SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=(2,))
    ends = frozenset({1})
    assert [draw(logits[None], [row(params, drawn=[0] * n, eos_ids=ends)])[0].token_id for n in range(3)] == [3, 3, 1]
    ignoring = SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=(2,), ignore_eos=True)
    assert draw(logits[None], [row(ignoring, eos_ids=ends)])[0].token_id == 1


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 1e-38, 1.0, 1e300])
def test_a_constraint_and_unused_ids_forbid_tokens(temperature: float) -> None:
    logits = torch.zeros(70)
    logits[69] = 50.0
    p = SamplingParams(temperature=temperature)
    allowed = {draw(logits[None], [row(p, seed=i, constraint=Only(31, 40))])[0].token_id for i in range(30)}
    assert allowed == ({31} if temperature == 0 else {31, 40})
    unused = torch.arange(2, 70)
    assert {draw(logits[None], [row(p, seed=i)], unused_ids_N=unused)[0].token_id for i in range(30)} <= {0, 1}
    assert draw(logits[None], [row(p)], unused_ids_N=unused)[0].logprob == pytest.approx(-50.0)


@pytest.mark.parametrize("fields", [{}, {"top_k": 5}, {"top_p": 0.7, "min_p": 0.01}, {"repetition_penalty": 1.3}])
@pytest.mark.parametrize("temperature", [0.0, 0.8, 1.0])
def test_rows_are_drawn_as_if_unused_ids_did_not_exist_and_log_probabilities_are_of_the_whole_softmax(
    fields: dict[str, float], temperature: float
) -> None:
    params = SamplingParams(temperature=temperature, logprobs=60, **fields)  # type: ignore[arg-type]
    unused = torch.tensor([3, 4, 17, *range(50, 64)])
    used = torch.tensor([token for token in range(64) if token not in unused])
    logits = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)) * 3
    logits[:, unused] += 30
    rows = [row(params, seed=seed, drawn=[1, 2]) for seed in range(40)]
    drawn = draw(logits, rows, unused_ids_N=unused)
    renumbered = used.tolist()
    without = [row(params, seed=seed, drawn=[1, 2]) for seed in range(40)]
    expected = [renumbered[each.token_id] for each in draw(logits[:, used], without)]
    assert [each.token_id for each in drawn] == expected
    whole = logits.double().log_softmax(-1)
    for each, row_V in zip(drawn, whole, strict=True):
        assert each.logprob == pytest.approx(float(row_V[each.token_id]), abs=1e-5)
        assert {token for token, _ in each.top} == set(renumbered)


@pytest.mark.parametrize("top_p", [1e-300, 1.0])
@pytest.mark.parametrize("scale", [1.0, 1e36])
def test_extremes_of_parameters_and_logits_draw_the_best_token(top_p: float, scale: float) -> None:
    logits = LOGITS * scale
    logits[1] = -torch.inf
    for params in (
        SamplingParams(temperature=1e-6, top_p=top_p),
        SamplingParams(temperature=1e-320, top_p=top_p),
        SamplingParams(temperature=1e-6, top_p=top_p, min_p=1.0, top_k=1, repetition_penalty=1e-30),
        SamplingParams(temperature=1e-6, top_p=top_p, logit_bias=((4, 1e300),)),
    ):
        assert draw(logits[None], [row(params, prompt=(4,))])[0].token_id == 4


def test_a_bad_row_fails_alone_and_says_why() -> None:
    logits = LOGITS.repeat(5, 1)
    logits[1, 2], logits[2, 0] = torch.nan, torch.inf
    rows = [row() for _ in range(5)]
    rows[3] = row(constraint=Only())
    rows[4] = row(SamplingParams(logit_bias=((5, 1.0),)))
    drawn = try_draw(logits, rows)
    kinds = [token.kind if isinstance(token, SamplingFailure) else "" for token in drawn]
    assert kinds == ["", "logits", "logits", "nothing allowed", "request"]
    assert "token 5 is outside the vocabulary of 5" in str(drawn[4])
    with pytest.raises(DataError, match="row 1: the model's logits are not finite"):
        draw(logits, rows)
    with pytest.raises(DataError, match="lower min_tokens or loosen"):
        distribution(LOGITS, rows[3])
