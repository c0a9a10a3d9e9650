"""The reward of steps: what is a step, where it ends, what is checked of it, and that nothing written makes it hang."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from fathom.posttrain.rewards.base import MAX_STEPS, RewardInput, StepScore, score_from_steps
from fathom.posttrain.rewards.extract import split_reasoning, thinking_span
from fathom.posttrain.rewards.judge import MAX_ANSWER_CHARS, Judge
from fathom.posttrain.rewards.steps import StepsScorer, is_right, steps_of
from fathom.spec.rewards import AccuracyReward, FormatReward, FunctionReward, ModelReward, StepsReward
from tests.posttrain.rewards.conftest import Ask

THOUGHT = "<think>2 + 3 = 5; 5 * 4 = 21\nso it is;\n 12 = 2 * 5 + 2 </think>\n1 + 1 = 3"
LONGER = "7 = 7;" * 2 + "1 + 1 = 2;" * (MAX_STEPS + 50)


@pytest.mark.parametrize(
    ("step", "right"),
    [
        ("2 + 3 = 5", True),
        ("2 + 3 = 6", False),
        ("17 = 3 * 5 + 2", True),
        ("17 = 3 * 5 + 1", False),
        ("x = 15 / 3 = 5", True),
        ("3*x = 11 + 4 = 16", False),
        ("7 / 2 = 3", False),
        ("2^5 = 32", True),
        ("17 % 5 = 2, 17 // 5 = 3", True),
        ("5 − 2 × 2 = 1.", True),
        ("cow: 3 * 4 = 12, 5 + 12 = 17", True),
        ("cow: 3 * 4 = 12, 5 + 12 = 18", False),
        ("1,000 + 2,500 = 3,500", True),
        ("$4 * (2 - 5) = -12$", True),
        ("13 = 6 * 2 + 1, digit 1", True),
        ("5 = 6", False),
        ("5 = 5", None),
        ("-5 = (-5)", None),
        ("so it is", None),
        ("x = 5", None),
        ("x + 2 = 5", None),
        ("gcd 4", None),
        ("2.5 * 2 = 5", None),
        ("He has 2 + 3 = 5 apples", None),
        ("5 / 0 = 1", None),
        ("2 + = 5 = ( 3", None),
        ("=", None),
        ("2 + 3", None),
        ("__import__('os') = 2 + 3", None),
        ("2 +\u00a03 = 5", None),
        ("٢ + ٣ = 5", None),
        ("007 + 1 = 8", None),
        ("1(2) = 3 + 4", None),
        ("9**9**9 = 1 + 1", None),
        ("((((9^60)^60)^60)^60)^60 = 1 + 1", None),
        ("2**-3 = 1 + 1", None),
        (f"{'9' * 190} * 2 = {'9' * 190}", None),
        (f"{'(' * 99}1{')' * 99} + 1 = 2", None),
        (f"{'-' * 80}1 = 1 + 1", False),
        (f"{'1 + ' * 400}1 = 401", None),
    ],
)
def test_a_step_is_right_wrong_or_says_nothing(step: str, right: bool | None) -> None:
    assert is_right(step) is right


def test_steps_end_at_newlines_and_semicolons_of_the_thinking() -> None:
    found = list(steps_of(THOUGHT))
    assert [step for _, step in found] == ["2 + 3 = 5", "5 * 4 = 21", "so it is", "12 = 2 * 5 + 2"]
    assert all(THOUGHT[:end].endswith(step) for end, step in found)


@pytest.mark.parametrize(
    ("text", "thinking"),
    [
        ("<think> a </think> b", "a"),
        ("a </think> b </think> c", "a </think> b"),
        ("<think> a", "a"),
        ("a <think> b </think> c", "b"),
        ("a <answer> b </answer>", "a"),
        ("<answer> b", ""),
    ],
)
def test_a_span_of_thinking_is_the_thinking_of_parts(text: str, thinking: str) -> None:
    start, end = thinking_span(text)
    assert text[start:end].strip() == split_reasoning(text).thinking == thinking


def test_a_text_without_tags_is_all_thinking(ask: Ask) -> None:
    assert thinking_span("1 + 1 = 2") == (0, 9)
    assert StepsScorer().score(ask("1 + 1 = 2\n ")) == [StepScore(9, 1.0)]


def test_a_judge_tells_steps_apart_from_outcomes(ask: Ask) -> None:
    rewards = [StepsReward(weight=0.5), AccuracyReward(method="exact", weight=2.0), FormatReward(weight=0.0)]
    with Judge(rewards) as judge:
        some, none = judge.judge([ask(THOUGHT, "1 + 1 = 3"), ask("<think>well</think>7", "8")])
    ends = [THOUGHT.index(step) + len(step) for step in ("2 + 3 = 5", "5 * 4 = 21", "12 = 2 * 5 + 2")]
    expected = tuple(StepScore(end, value) for end, value in zip(ends, (0.5, 0.0, 0.5), strict=True))
    assert dict(some.steps) == {"steps": expected}
    assert some.outcome == 2.0
    assert some.parts["steps"] == pytest.approx(2 / 3)
    assert some.total == pytest.approx(2.0 + 0.5 * 2 / 3)
    assert (dict(none.steps), none.outcome, none.total) == ({"steps": ()}, 0.0, 0.0)
    assert "steps" not in none.parts


def test_without_other_rewards_of_weight_there_is_no_outcome(ask: Ask) -> None:
    with Judge([StepsReward(), AccuracyReward(method="exact", weight=0.0)]) as judge:
        (judged,) = judge.judge([ask(THOUGHT)])
    assert judged.outcome is None
    assert judged.correct is False
    with Judge([FormatReward(), StepsReward(weight=0.0)]) as judge:
        (judged,) = judge.judge([ask(THOUGHT)])
    assert (dict(judged.steps), judged.outcome) == ({}, 0.0)
    assert judged.parts["steps"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "answer",
    [
        "9**9**9 = 1;" * 20_000,
        "1=" * (MAX_ANSWER_CHARS // 2),
        "1=1;" * (MAX_ANSWER_CHARS // 4),
        ";" * MAX_ANSWER_CHARS,
        "(" * MAX_ANSWER_CHARS,
        "1,000" * (MAX_ANSWER_CHARS // 5),
        ("(" * 90 + "1" + ")" * 90 + "+1=" * 30 + "2\n") * 1400,
    ],
    ids=["powers", "one chain", "many equalities", "semicolons", "brackets", "commas", "nested"],
)
def test_the_longest_answers_are_judged_in_time(ask: Ask, answer: str) -> None:
    with Judge([StepsReward()], seconds=60.0) as judge:
        (judged,) = judge.judge([ask(answer)])
    assert not judged.failures


def test_a_megabyte_is_one_step_worth_nothing(ask: Ask) -> None:
    with Judge([StepsReward()]) as judge:
        huge, right = judge.judge([ask("1 + 1 = 2;" * 100_000), ask("1 + 1 = 2")])
    assert dict(huge.steps) == {"steps": (StepScore(1_000_000, 0.0),)}
    assert huge.failures["steps"].startswith("too long")
    assert right.total == 1.0


def test_only_so_many_equations_are_looked_at(ask: Ask) -> None:
    found = StepsScorer().score(ask(LONGER))
    assert len(found) == MAX_STEPS - 2
    with Judge([StepsReward()]) as judge:
        assert len(judge.judge([ask(LONGER)])[0].steps["steps"]) == MAX_STEPS - 2


@pytest.mark.parametrize(
    ("steps", "failure"),
    [
        ([StepScore(4, 1.0)], "crashed: a step ends outside the answer of 3 characters"),
        ([StepScore(-1, 1.0)], "crashed: a step ends outside the answer of 3 characters"),
        ([StepScore(1, math.inf)], "not finite"),
        ([StepScore(1, 1.0)] * (MAX_STEPS + 1), "too many steps: 1001"),
    ],
)
def test_scores_of_steps_that_cannot_be_are_failures(steps: list[StepScore], failure: str) -> None:
    assert score_from_steps(steps, 3).failure == failure


@pytest.mark.parametrize(
    ("answer", "steps", "failure"),
    [
        ("two", (StepScore(1, -1.0), StepScore(3, 0.5)), ""),
        ("none", (), ""),
        ("nothing", (), ""),
        ("number", (StepScore(6, 0.0),), "crashed: TypeError"),
        ("outside", (StepScore(7, 0.0),), "crashed: a step ends outside"),
        ("text", (StepScore(4, 0.0),), "crashed: TypeError"),
    ],
)
def test_a_function_of_ones_own_may_score_steps(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, answer: str, steps: tuple[StepScore, ...], failure: str
) -> None:
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    with Judge([FunctionReward(target="misbehaving:steps", steps=True)]) as judge:
        (judged,) = judge.judge([ask(answer)])
    assert judged.steps["function"] == steps
    assert judged.failures.get("function", "").startswith(failure)
    assert bool(judged.failures) == bool(failure)


def test_a_function_that_does_not_say_so_scores_no_steps(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    with Judge([FunctionReward(target="misbehaving:steps")]) as judge:
        (judged,) = judge.judge([ask("two")])
    assert judged.failures == {"function": "crashed: returned list, not a number"}


def test_a_reward_model_scores_steps_where_it_is_asked_to(ask: Ask) -> None:
    def steps(answers: Sequence[RewardInput]) -> list[list[StepScore]]:
        return [[StepScore(1, 2.0), StepScore(2, -4.0)], [StepScore(2, math.nan)]]

    reward = ModelReward(step="rm", steps=True, weight=0.5)
    with Judge([reward, FormatReward()], external={"model": steps}) as judge:
        good, bad = judge.judge([ask("ab"), ask("ab")])
    assert good.steps == {"model": (StepScore(1, 1.0), StepScore(2, -2.0))}
    assert (good.total, good.outcome) == (-0.5, 0.0)
    assert bad.steps == {"model": (StepScore(2, 0.0),)}
    assert bad.failures == {"model": "not finite"}
    with Judge([reward], external={"model": lambda answers: [1.0]}) as judge:
        assert "steps is true" in judge.judge([ask("ab")])[0].failures["model"]
