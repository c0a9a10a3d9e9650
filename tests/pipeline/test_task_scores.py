"""Figures of a tasks step from made-up records, against formulas written out."""

from __future__ import annotations

from typing import Any

import pytest

from fathom.inference.answer_sampling import count_failures
from fathom.pipeline.task_scores import change, stage_score


def record(name: str, verdicts: list[bool], expected: str = "4") -> dict[str, Any]:
    answers = [
        {"text": "", "answer": "4" if right else "5", "correct": right, "finished": right, "tokens": 3, "failures": {}}
        | {"rewards": {"accuracy": float(right)} | ({} if right else {"format": 0.5})}
        for right in verdicts
    ]
    return {"id": name, "question": name, "expected": expected, "answers": answers}


def records(*verdicts: list[bool]) -> list[dict[str, Any]]:
    return [record(f"p{index}", each) for index, each in enumerate(verdicts)]


def test_a_change_of_verdicts_is_paired() -> None:
    before = records(*[[True]] * 30, *[[False]] * 70)
    after = records(*[[True]] * 30, *[[True]] * 20, *[[False]] * 50)
    lost = records(*[[False]] * 15, *[[True]] * 50, *[[False]] * 35)
    kept_change, mixed_change = change(before, after), change(before, lost)
    assert kept_change is not None
    assert mixed_change is not None
    assert kept_change["value"] == pytest.approx(0.2)
    assert mixed_change["value"] == pytest.approx(0.2)
    assert 0 < kept_change["low"] < 0.2 < kept_change["high"] < 1
    assert kept_change["high"] - kept_change["low"] < mixed_change["high"] - mixed_change["low"]


def test_a_change_of_shares_is_their_mean_difference() -> None:
    before = records(*[[True, False, False, False], [False] * 4, [True] * 4] * 20)
    after = records(*[[True, True, True, False], [True, False, False, False], [True] * 4] * 20)
    found = change(before, after)
    assert found is not None
    assert found["value"] == pytest.approx((0.5 + 0.25 + 0) / 3)
    spread = 1.96 * (((0.25**2 + 0 + 0.25**2) / 3) / 60) ** 0.5
    assert found["low"] == pytest.approx(found["value"] - spread, abs=0.01)
    assert found["high"] == pytest.approx(found["value"] + spread, abs=0.01)


def test_other_problems_have_no_change() -> None:
    assert change(records([True], [False]), records([True])) is None


def test_problems_that_only_a_check_decides_have_no_majority() -> None:
    checked = stage_score([record("p", [True, False], expected="")], 1.0)
    voted = stage_score([record("p", [True, False])], 1.0)
    assert "majority@2" not in checked
    assert voted["majority@2"]["value"] == 0.5
    assert checked["pass@2"]["value"] == 1.0
    assert (checked["tokens"], checked["finished"]) == (3, 0.5)


def test_rewards_are_averaged_over_the_answers_they_apply_to() -> None:
    score = stage_score(records([True, False], [False, False]), 1.0)
    assert score["rewards"] == {"accuracy": 0.25, "format": 0.5}


def test_ks_are_powers_of_two_and_all_answers() -> None:
    score = stage_score(records([True, False, False, True, False, False]), 1.0)
    assert [name for name in score if name.startswith("pass")] == ["pass@1", "pass@2", "pass@4", "pass@6"]
    assert [name for name in score if name.startswith("majority")] == ["majority@2", "majority@4", "majority@6"]


def test_failures_are_counted_by_part_and_kind() -> None:
    result = [{"accuracy": "timed out"}, {"code": "crashed: a"}, {}, {"code": "crashed: b", "accuracy": "timed out"}]
    assert count_failures([*result, {"engine": ""}]) == {
        "accuracy: timed out": 2,
        "code: crashed": 2,
        "engine: failed": 1,
    }
