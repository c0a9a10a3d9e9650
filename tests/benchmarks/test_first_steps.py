from __future__ import annotations

from benchmarks.first_steps import differences

ROWS = [{"step": 1, "loss": 9.01}, {"step": 2, "loss": 8.5}]


def test_the_last_digit_counts() -> None:
    assert differences(ROWS, [dict(row) for row in ROWS]) == []
    changed = [ROWS[0], {"step": 2, "loss": 8.500000000000002}]
    assert differences(ROWS, changed) == ["step 2: loss 8.5 -> 8.500000000000002"]


def test_missing_figures_and_steps_are_differences() -> None:
    assert differences(ROWS, ROWS[:1]) == ["2 steps against 1"]
    assert differences(ROWS[:1], [{"step": 1}]) == ["step 1: loss 9.01 -> None"]
