"""pass@k and majority@k of several answers to each problem, with confidence intervals."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import numpy as np

from fathom.errors import SpecError
from fathom.evals.accuracy import Accuracy

_DRAWS = 2000
_GROUPED = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemSamples:
    """The answers drawn for one problem; ``answers`` holds None where no answer could be parsed."""

    correct: tuple[bool, ...]
    answers: tuple[str | None, ...]

    def __post_init__(self) -> None:
        if not self.correct or len(self.correct) != len(self.answers):
            raise SpecError(
                "answers", f"{len(self.answers)} with {len(self.correct)} verdicts", "give one verdict to each answer"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over ``n`` problems, or a difference of two, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the chance that one of ``k`` answers is right, drawn from ``n`` of which ``c`` are (Chen et al. 2021).

    It is unbiased: ``1 - C(n - c, k) / C(n, k)``. Fewer than ``k`` answers raise ``SpecError``.
    """
    _check_k(n, k)
    if not 0 <= c <= n:
        raise SpecError("c", f"{c} right of {n} answers", "count right answers among those given")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def normalize_answer(answer: str) -> str:
    """Normalise an answer for the vote: whitespace and case, and a number by its value (1,800 and 1800.0)."""
    text = " ".join(answer.split()).strip(" .$").casefold()
    plain = text.replace(",", "") if _GROUPED.fullmatch(text) else text
    try:
        value = Decimal(plain)
    except InvalidOperation:
        return text
    return format(value.normalize() + 0, "f") if value.is_finite() and abs(value.adjusted()) < 50 else text


def majority(record: ProblemSamples, k: int | None = None) -> float:
    """Return the chance that the most frequent of ``k`` answers is right (all of them by default; Wang et al. 2022).

    Exact over all subsets of ``k`` answers. Answers tied for the most votes share the chance evenly; unparsed answers
    have no vote. Where equal answers have different verdicts, the share of right ones counts.
    """
    n = len(record.answers)
    k = n if k is None else k
    _check_k(n, k)
    votes = [None if answer is None else normalize_answer(answer) for answer in record.answers]
    counts = Counter(votes)
    unparsed = counts.pop(None, 0)
    right = Counter(vote for vote, correct in zip(votes, record.correct, strict=True) if correct)
    wins = 0.0
    for answer, count in counts.items():
        if right[answer]:
            others = [other for name, other in counts.items() if name != answer]
            wins += _count_wins(count, others, unparsed, k) * right[answer] / count
    return wins / math.comb(n, k)


def _count_wins(count: int, others: Sequence[int], unparsed: int, k: int) -> float:
    """Count the subsets of ``k`` in which an answer given ``count`` times has most votes; a tie of m counts 1 / m."""
    total = 0.0
    for votes in range(1, min(count, k) + 1):
        ways = _at_most(votes, others, unparsed, k - votes)
        total += math.comb(count, votes) * sum(number / (1 + ties) for ties, number in ways.items())
    return total


def _at_most(votes: int, others: Sequence[int], unparsed: int, rest: int) -> dict[int, int]:
    """Count the ways to draw ``rest`` answers, no other given more than ``votes`` times, by how many have just that."""
    ways = {(drawn, 0): math.comb(unparsed, drawn) for drawn in range(min(unparsed, rest) + 1)}
    for other in others:
        following: Counter[tuple[int, int]] = Counter()
        for (drawn, ties), number in ways.items():
            for taken in range(min(other, votes, rest - drawn) + 1):
                following[drawn + taken, ties + (taken == votes)] += number * math.comb(other, taken)
        ways = dict(following)
    found: Counter[int] = Counter()
    for (drawn, ties), number in ways.items():
        if drawn == rest:
            found[ties] += number
    return dict(found)


def summary(records: Sequence[ProblemSamples], ks: Iterable[int]) -> Mapping[str, Estimate]:
    """Return ``pass@k`` and ``majority@k`` for every ``k``, averaged over problems, with 95 % intervals.

    Intervals are Wilson's where every problem has one answer, else a bootstrap over problems, so that they hold for
    other problems of the same kind. A problem with fewer than ``k`` answers raises ``SpecError``.
    """
    wanted = sorted(set(ks))
    if not records or not wanted:
        raise SpecError("records", f"{len(records)} problems, k of {wanted}", "give at least one of both")
    found: dict[str, Estimate] = {}
    for k in wanted:
        found[f"pass@{k}"] = mean([pass_at_k(len(r.correct), sum(r.correct), k) for r in records])
        found[f"majority@{k}"] = mean([majority(r, k) for r in records])
    return found


def mean(values: Sequence[float], *, draws: int = _DRAWS, seed: int = 0) -> Estimate:
    """Return the mean of shares, one of each problem, with a 95 % interval.

    Shares that are all 0 or 1 are verdicts: Wilson's interval, which also holds where all agree. Else the percentiles
    of the means of ``draws`` samples of the problems, drawn with replacement from ``seed``.
    """
    if not values:
        raise SpecError("values", "none given", "give the share of at least one problem")
    if all(value in (0.0, 1.0) for value in values):
        accuracy = Accuracy.of(value == 1.0 for value in values)
        low, high = accuracy.interval
        return Estimate(value=accuracy.value, low=low, high=high, n=len(values))
    shares = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = [float(shares[rng.integers(len(shares), size=len(shares))].mean()) for _ in range(draws)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(value=float(shares.mean()), low=float(low), high=float(high), n=len(values))


def paired_difference(before: Sequence[bool], after: Sequence[bool]) -> Estimate:
    """Return how much accuracy rose on the same problems, with a 95 % interval (Newcombe 1998, paired, method 10).

    Wilson's intervals of both accuracies are combined by the correlation of their verdicts, so that the interval
    is narrower where both models agree on most problems.
    """
    if not before or len(before) != len(after):
        raise SpecError("after", f"{len(after)} verdicts to {len(before)} before", "judge the same problems both times")
    n = len(before)
    first, second = Accuracy.of(before), Accuracy.of(after)
    (low_1, high_1), (low_2, high_2) = first.interval, second.interval
    difference, phi = second.value - first.value, _correlation(before, after)
    down = _combined(second.value - low_2, high_1 - first.value, phi)
    up = _combined(high_2 - second.value, first.value - low_1, phi)
    return Estimate(value=difference, low=max(-1.0, difference - down), high=min(1.0, difference + up), n=n)


def _correlation(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Return the phi coefficient, a positive one corrected for continuity as in Newcombe's method 10."""
    pairs = Counter(zip(before, after, strict=True))
    both, neither = pairs[True, True], pairs[False, False]
    lost, gained = pairs[True, False], pairs[False, True]
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    if not margins:
        return 0.0
    excess = both * neither - lost * gained
    corrected = max(excess - len(before) / 2, 0.0) if excess > 0 else float(excess)
    return corrected / math.sqrt(margins)


def _combined(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))


def _check_k(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise SpecError("k", f"{k} of {n} answers", f"give 1 to {n}, or draw more answers")
