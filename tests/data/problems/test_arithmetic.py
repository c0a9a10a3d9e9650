"""Arithmetic that is checked, against Python's own and against what worked solutions write."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from fractions import Fraction

import pytest

from fathom.data.problems.arithmetic import equation_holds, exact_value, linear_steps, tree_steps

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}


def expression(draw: random.Random, depth: int) -> tuple[str, int | None]:
    """An expression in brackets and its value, computed along with it; None where it divides by 0."""
    if depth == 0:
        number = draw.randrange(12)
        return str(number), number
    (first, one), (second, other) = expression(draw, depth - 1), expression(draw, draw.randrange(depth))
    sign = draw.choice(list(OPERATIONS))
    written = f"({first} {sign} {second})"
    if one is None or other is None or (sign in ("//", "%") and other == 0):
        return written, None
    return written, OPERATIONS[sign](one, other)


def test_values_are_those_of_whole_numbers() -> None:
    draw = random.Random(1)
    drawn = [expression(draw, 4) for _ in range(500)]
    assert [exact_value(written) for written, _ in drawn] == [value for _, value in drawn]
    assert 100 < sum(value is not None for _, value in drawn) < 500


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("7 / 2", Fraction(7, 2)),
        ("1/3 + 1/6", Fraction(1, 2)),
        ("2 ** 10", Fraction(1024)),
        ("-2 ^ 2", Fraction(-4)),
        ("10 ÷ 4 × 2", Fraction(5)),
        ("2 ** (1/2)", None),
        ("3 // 0", None),
        ("3 % 0", None),
        ("2 ** 64 * 2 ** 64 * 2 ** 64 * 2 ** 63", Fraction(2**255)),
        ("2 ** 64 * 2 ** 64 * 2 ** 64 * 2 ** 64", None),
        ("1 / 2 ** 64 / 2 ** 64 / 2 ** 64 / 2 ** 64", None),
        ("2 ** 65", None),
        ("1 << 9", None),
        ("1 if 2 else 3", None),
        ("1e3", None),
        ("", None),
        ("1 " * 101, None),
    ],
)
def test_values_are_exact_or_none(written: str, value: Fraction | None) -> None:
    assert exact_value(written) == value


@pytest.mark.parametrize("solution", [tree_steps("(2 + 3) * 4 - 6 / 2"), linear_steps("3*x - 4 = 11", "x")])
def test_what_worked_solutions_write_holds(solution: str | None) -> None:
    assert solution is not None
    steps = solution.split("; ")
    assert len(steps) >= 2
    assert all(equation_holds(step) for step in steps)
    assert not any(equation_holds(step[:-1] + str((int(step[-1]) + 1) % 10)) for step in steps)
