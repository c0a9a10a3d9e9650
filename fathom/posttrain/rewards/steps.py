"""Steps of an answer's thinking: where each ends, and the reward of those that are equations (DeepSeekMath §4.1.3).

The paper does not say what a step is. Here thinking is cut at newlines and semicolons, as Fathom's worked solutions are
written, and a text without tags is all thinking.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from fathom.data.problems.arithmetic import equation_holds
from fathom.posttrain.rewards.base import MAX_STEPS, RIGHT, RewardInput, StepScore
from fathom.posttrain.rewards.extract import thinking_span

MAX_STEP_CHARS = 1000
"""A longer step is no equation that anybody checks."""

_STEP = re.compile(r"[^\n;]+")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_STRIP_CHARS = " \t\r.$`"


class StepsScorer:
    """1 or 0 for each step that is an equation; of an answer's equations only the first 1,000 are looked at."""

    def prepare(self, answers: Sequence[RewardInput]) -> None:
        """Need nothing."""

    def score(self, answered: RewardInput) -> list[StepScore]:
        """Judge the steps."""
        found: list[StepScore] = []
        looked = 0
        for end, text in steps_of(answered.answer):
            if "=" not in text:
                continue
            looked += 1
            if looked > MAX_STEPS:
                break
            right = is_right(text)
            if right is not None:
                found.append(StepScore(end, RIGHT if right else 0.0))
        return found


def steps_of(text: str) -> Iterator[tuple[int, str]]:
    """Yield the steps of a text's thinking that are not blank: how many characters reach to its end, and the step."""
    start, end = thinking_span(text)
    for found in _STEP.finditer(text, start, end):
        step = found[0].rstrip()
        if step:
            yield found.start() + len(step), step.lstrip()


def is_right(step: str) -> bool | None:
    """Say whether a step's equations all hold; None where it has none that can be checked.

    A step may be several equations with commas between them, behind a word and a colon: ``cow: 3 * 4 = 12, 5 + 12 =
    17``. An equation among other words is not read, nor one with a decimal point: it may be rounded.
    """
    if len(step) > MAX_STEP_CHARS:
        return None
    verdicts = [equation_holds(_bare(piece)) for piece in _THOUSANDS.sub("", step).split(",")]
    known = [verdict for verdict in verdicts if verdict is not None]
    return all(known) if known else None


def _bare(piece: str) -> str:
    """Return an equation without what surrounds it: a label that has letters, marks of mathematics, a full stop."""
    label, colon, rest = piece.partition(":")
    labelled = bool(colon) and any(c.isalpha() for c in label)
    return (rest if labelled else piece).strip(_STRIP_CHARS)
