"""Inputs and results of rewards, and the protocol of a scorer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fathom.spec.problem import Problem

RIGHT = 1.0
"""The least score that counts as a correct answer."""
TIMED_OUT, TOO_LONG = "timed out", "too long"
"""How a failure is named where a reward took too long, and where an answer is so long that no reward sees it."""
MAX_STEPS = 1000
"""So many steps of one answer may have scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardInput:
    """A prompt and what a model wrote after it.

    ``answer`` is text with special tokens spelled, so that think tags are seen, without the end of sequence.
    ``finished`` is False where the answer was cut off at its token limit.
    """

    prompt: str
    answer: str
    problem: Problem
    finished: bool = True


@dataclass(frozen=True, slots=True)
class StepScore:
    """What one step of an answer is worth; ``end`` counts the answer's characters up to where the step ends."""

    end: int
    value: float


@dataclass(frozen=True, slots=True)
class Score:
    """One reward of one answer: a finite value, None where the reward does not apply, or 0 and why it failed.

    A reward that scores steps says what each is worth, in their order, and ``value`` is their mean.
    """

    value: float | None
    failure: str = ""
    steps: tuple[StepScore, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The weighted sum of an answer's rewards, and its parts before they are weighted.

    A reward that does not apply to the problem has no part. ``correct`` is None where no reward decides that.
    ``failures`` says why a part that counts 0 has no value of its own: timed out, crashed, not finite, too long.

    ``total`` counts a reward that scores steps as their mean. What process supervision learns from is ``steps``, by
    the reward's name and weighted, and ``outcome``, the weighted sum of all other rewards; None where there are none.
    Rewards of weight 0 are in neither.
    """

    total: float
    parts: Mapping[str, float]
    correct: bool | None
    failures: Mapping[str, str] = field(default_factory=dict)
    steps: Mapping[str, tuple[StepScore, ...]] = field(default_factory=dict)
    outcome: float | None = None


class Scorer(Protocol):
    """A reward as it runs inside its process."""

    def prepare(self, answers: Sequence[RewardInput]) -> None:
        """Import and load what these answers' problems need; nothing that depends on what a model wrote.

        It has a long time limit of its own, and what it raises ends the run: an answer is not to blame.
        """

    def score(self, answered: RewardInput) -> float | Sequence[StepScore] | None:
        """Return the reward, or what each step is worth, or None where it does not apply to the problem."""


def score_from_steps(steps: Sequence[StepScore], length: int) -> Score:
    """Return the score of an answer of ``length`` characters by its steps; without any it does not apply."""
    if len(steps) > MAX_STEPS:
        return Score(0.0, f"too many steps: {len(steps)}")
    if any(not 0 <= step.end <= length for step in steps):
        return Score(0.0, f"crashed: a step ends outside the answer of {length} characters")
    if not all(math.isfinite(step.value) for step in steps):
        return Score(0.0, "not finite")
    if not steps:
        return Score(None)
    mean = sum(step.value for step in steps) / len(steps)
    return Score(mean, steps=tuple(sorted(steps, key=lambda step: step.end)))
