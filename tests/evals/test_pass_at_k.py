from __future__ import annotations

import math
import random
from collections import Counter
from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import SpecError
from fathom.evals.accuracy import Accuracy
from fathom.evals.pass_at_k import (
    ProblemSamples,
    majority,
    mean,
    normalize_answer,
    paired_difference,
    pass_at_k,
    summary,
)


@given(verdicts=st.lists(st.booleans(), min_size=1, max_size=8), data=st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(verdicts: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(verdicts)))
    expected = fmean(any(subset) for subset in combinations(verdicts, k))
    assert pass_at_k(len(verdicts), sum(verdicts), k) == pytest.approx(expected)


def test_pass_at_k_stays_exact_for_many_answers() -> None:
    assert pass_at_k(10_000, 1, 100) == pytest.approx(0.01)
    assert pass_at_k(200, 200, 7) == 1.0
    assert pass_at_k(200, 0, 7) == 0.0


def voted(answers: tuple[str | None, ...], right: set[str]) -> float:
    """The vote of one subset, by hand."""
    counts = Counter(answer for answer in answers if answer is not None)
    if not counts:
        return 0.0
    best = [answer for answer, count in counts.items() if count == max(counts.values())]
    return len(right & set(best)) / len(best)


@given(
    answers=st.lists(st.sampled_from(["1", "2", "3", "4", None]), min_size=1, max_size=8),
    right=st.sets(st.sampled_from("1234"), max_size=2),
    data=st.data(),
)
def test_majority_is_the_mean_vote_over_all_subsets(
    answers: list[str | None], right: set[str], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(answers)))
    record = ProblemSamples(correct=tuple(a in right for a in answers), answers=tuple(answers))
    assert majority(record, k) == pytest.approx(fmean(voted(subset, right) for subset in combinations(answers, k)))
    assert majority(record) == pytest.approx(voted(tuple(answers), right))


def test_equal_answers_spelled_differently_vote_together() -> None:
    record = ProblemSamples(correct=(True, True, False, False), answers=("1,800", " 1800.0 ", "Two", "three"))
    assert majority(record) == 1.0
    # one of two equal answers judged right, as an unsure judge may: half a win
    assert majority(ProblemSamples(correct=(True, False, False), answers=("7", "7", "8"))) == 0.5


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("1,800", "1800"), ("1800.0", "1800"), ("+7", "7"), ("-0", "0"), ("0.50", "0.5"), ("$12.", "12"),
        ("1,2", "1,2"), ("[1, 2]", "[1, 2]"), (" The  END. ", "the end"), ("1e3", "1000"), ("1e999", "1e999"),
        ("NaN", "nan"), ("一", "一"),
    ],
)  # fmt: skip
def test_answers_vote_in_one_form(answer: str, form: str) -> None:
    assert normalize_answer(answer) == form


def test_many_answers_are_voted_on_exactly() -> None:
    # of 64 answers 33 are right and 31 all the same: the one with more than half of k = 63 wins
    record = ProblemSamples(correct=(True,) * 33 + (False,) * 31, answers=("1",) * 33 + ("2",) * 31)
    assert majority(record, 63) == pytest.approx(1.0)
    assert majority(record, 62) == pytest.approx(1 - 0.5 * math.comb(33, 2) / math.comb(64, 2))
    spread = ProblemSamples(correct=(True,) + (False,) * 63, answers=tuple(str(n) for n in range(64)))
    assert majority(spread, 32) == pytest.approx(0.5 / 32)


def test_a_summary_averages_over_problems() -> None:
    records = [
        ProblemSamples(correct=(True, False, False, False), answers=("1", "2", "2", "3")),
        ProblemSamples(correct=(True, True, True, False), answers=("5", "5", "5", None)),
    ]
    found = summary(records, [4, 1, 1])
    assert list(found) == ["pass@1", "majority@1", "pass@4", "majority@4"]
    assert found["pass@1"].value == pytest.approx(0.5)
    assert found["majority@1"].value == pytest.approx(0.5)
    assert found["pass@4"].value == 1.0
    assert found["majority@4"].value == 0.5
    for estimate in found.values():
        assert estimate.n == 2
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_verdicts_get_wilsons_interval_and_shares_a_bootstrap() -> None:
    verdicts = [1.0] * 7 + [0.0] * 13
    estimate = mean(verdicts)
    assert (estimate.low, estimate.high) == Accuracy(correct=7, n=20).interval
    assert mean([0.0] * 10).high > 0.2
    rng = random.Random(3)
    shares = [rng.random() for _ in range(400)]
    found = mean(shares)
    reach = 1.96 * math.sqrt(sum((s - fmean(shares)) ** 2 for s in shares)) / len(shares)
    assert found.value == pytest.approx(fmean(shares))
    assert found.low == pytest.approx(fmean(shares) - reach, abs=reach / 5)
    assert found.high == pytest.approx(fmean(shares) + reach, abs=reach / 5)
    assert mean(shares) == found
    assert mean(shares, seed=1) != found


@pytest.mark.parametrize(
    ("cells", "interval"),
    # right both times, gained, lost, wrong both times; Newcombe 1998, table III, method 10
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((20, 12, 2, 16), (0.0562, 0.3292)),
        ((36, 14, 0, 0), (0.1528, 0.4167)),
        ((35, 14, 0, 1), (0.1461, 0.4175)),
        ((18, 14, 0, 18), (0.1441, 0.3963)),
        ((1, 97, 1, 1), (0.8736, 0.9850)),
        ((0, 30, 0, 0), (0.8395, 1.0)),
        ((54, 0, 0, 0), (-0.0664, 0.0664)),
        ((30, 0, 0, 24), (-0.0358, 0.0358)),
    ],
)
def test_a_paired_difference_has_the_interval_that_was_published(
    cells: tuple[int, int, int, int], interval: tuple[float, float]
) -> None:
    both, gained, lost, neither = cells
    before = [True] * both + [False] * gained + [True] * lost + [False] * neither
    after = [True] * (both + gained) + [False] * (lost + neither)
    found = paired_difference(before, after)
    assert found.value == pytest.approx((gained - lost) / sum(cells))
    assert (found.low, found.high) == pytest.approx(interval, abs=1e-4)
    back = paired_difference(after, before)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_a_paired_difference_covers_the_truth_as_often_as_it_says() -> None:
    rng = random.Random(5)
    covered = 0
    for _ in range(600):
        # 20 % gained, 5 % lost, 40 % kept: the true difference is 0.15
        draws = [rng.random() for _ in range(80)]
        before = [d < 0.45 for d in draws]
        after = [d < 0.40 or 0.45 <= d < 0.65 for d in draws]
        found = paired_difference(before, after)
        covered += found.low <= 0.15 <= found.high
    assert 0.92 < covered / 600 < 0.985


def test_verdicts_that_go_together_are_judged_more_sharply() -> None:
    before = [True] * 40 + [False] * 60
    together = paired_difference(before, [True] * 50 + [False] * 50)
    apart = paired_difference(before, [False] * 50 + [True] * 50)
    assert together.value == apart.value
    assert together.high - together.low < 0.6 * (apart.high - apart.low)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pass_at_k(3, 1, 4), "k: 4 of 3 answers; give 1 to 3"),
        (lambda: pass_at_k(3, 1, 0), "k: 0 of 3 answers"),
        (lambda: pass_at_k(3, 4, 1), "c: 4 right of 3 answers"),
        (lambda: majority(ProblemSamples(correct=(True,), answers=("1",)), 2), "k: 2 of 1 answers"),
        (lambda: ProblemSamples(correct=(), answers=()), "answers: 0 with 0 verdicts"),
        (lambda: ProblemSamples(correct=(True,), answers=("1", "2")), "answers: 2 with 1 verdicts"),
        (lambda: summary([], [1]), "records: 0 problems"),
        (lambda: mean([]), "values: none given"),
        (lambda: paired_difference([True], []), "after: 0 verdicts to 1 before; judge the same problems"),
    ],
)
def test_counts_that_cannot_be_are_refused(call, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        call()
    assert str(caught.value).startswith(message)
