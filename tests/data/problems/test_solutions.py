from __future__ import annotations

import re
from dataclasses import replace

import pytest

from fathom.data.problems.arithmetic import linear_steps, tree_steps
from fathom.data.problems.gym import open_gym
from fathom.data.problems.solutions import SOLVED_DATASETS, worked_solution
from fathom.evals.word_problems import final_number, same_number
from fathom.spec.problem import GymProblems

pytest.importorskip("reasoning_gym")
EQUATION = re.compile(r"(-?[\d.]+) ([-+*/]) (-?[\d.]+) = (-?[\d.]+)(?![\d.]* [-+*/])")
NUMBERS = {
    "basic_arithmetic", "chain_sum", "count_bits", "decimal_chain_sum", "gcd", "gsm_symbolic", "lcm", "leg_counting",
    "letter_counting", "products", "simple_equations",
}  # fmt: skip


@pytest.mark.parametrize("dataset", sorted(SOLVED_DATASETS))
def test_worked_solutions_end_with_the_answer(dataset: str) -> None:
    problems = open_gym(GymProblems(dataset=dataset)).problems("train", 0, 50, seed=11)
    texts = [problem.details.get("solution") for problem in problems]
    missing = [problem.question for problem, text in zip(problems, texts, strict=True) if text is None]
    # an expression whose parts are not whole numbers is the one thing not worked
    assert len(missing) <= (5 if dataset == "basic_arithmetic" else 0), missing
    for problem, text in zip(problems, texts, strict=True):
        if text is None:
            continue
        assert re.split(r"[ \n]", text)[-len(problem.answer.split(" ")) :] == re.split(r"[ \n]", problem.answer)
        if dataset in NUMBERS:
            assert same_number(final_number(text), problem.answer)


@pytest.mark.parametrize("dataset", ["base_conversion", "basic_arithmetic", "chain_sum", "gcd", "lcm", "products"])
def test_every_step_of_a_calculation_is_right(dataset: str) -> None:
    checked = 0
    for problem in open_gym(GymProblems(dataset=dataset)).problems("train", 0, 50, seed=12):
        for step in re.split(r"; |, ", problem.details.get("solution", "")):
            if " = " in step and "digit" not in step:
                left, right = step.split(" = ")
                if re.fullmatch(r"[-\d +*/.]+", step.replace("=", "")):
                    assert same_number(_value(left), _value(right)), step
                    checked += 1
    assert checked >= 50


def _value(text: str) -> str:
    """Compute numbers and signs from left to right, products first."""
    terms = re.split(r" ([-+]) ", text)
    total = 0.0
    for sign, term in zip(["+", *terms[1::2]], terms[::2], strict=True):
        factors = re.split(r" ([*/]) ", term)
        product = float(factors[0])
        for operation, factor in zip(factors[1::2], factors[2::2], strict=True):
            product = product * float(factor) if operation == "*" else product / float(factor)
        total += product if sign == "+" else -product
    return f"{total:.6f}"


def test_solutions_show_their_work() -> None:
    def solution(dataset: str, metadata: dict, answer: str, question: str = "q") -> str | None:
        problem = open_gym(GymProblems(dataset=dataset)).problems("train", 0, 1)[0]
        details = {"dataset": dataset, "metadata": metadata}
        return worked_solution(replace(problem, question=question, answer=answer, details=details))

    assert solution("chain_sum", {"expression": "4 - 1 + 7"}, "10") == "4 - 1 = 3; 3 + 7 = 10"
    assert solution("chain_sum", {"expression": "4 - 1 + 7"}, "11") is None
    assert solution("chain_sum", {"expression": "4 - 1 + 7"}, "0") is None
    assert solution("products", {"expression": "12 * 30"}, "360") == "12 * 30 = 360"
    assert solution("products", {"expression": "12 * 34"}, "408") == "12 * 30 = 360; 12 * 4 = 48; 360 + 48 = 408"
    assert solution("gcd", {"numbers": [8, 12]}, "4") == "12 = 1 * 8 + 4; 8 = 2 * 4 + 0; gcd 4"
    legs = "2 cat: 2 * 4 = 8; 1 ant: 1 * 6 = 6; 8 + 6 = 14"
    assert solution("leg_counting", {"animals": {"cat": 2, "ant": 1}}, "14") == legs
    assert solution("leg_counting", {"animals": {"cat": 2}}, "8") == "2 cat: 2 * 4 = 8"
    filtered = {"operation": "remove_larger", "filter_value": "6", "original_numbers": ["7", "6"], "result": ["6"]}
    assert solution("number_filtering", filtered, "['6']") == "remove >, 7 > 6: remove\nremove >, 6 = 6: keep\n['6']"
    assert solution("letter_counting", {"span": ["Ann", "an"], "target_letter": "a"}, "2") == "A n n: 1; a n: 2"
    assert solution("spell_backward", {"word": "sun"}, "nus") == "s u n; backward n u s; nus"
    assert solution("base_conversion", {"source_base": 2, "target_base": 16, "source_repr": "11010"}, "1a") == (
        "1 * 2 + 1 = 3; 3 * 2 + 0 = 6; 6 * 2 + 1 = 13; 13 * 2 + 0 = 26; "
        "26 = 1 * 16 + 10, digit a; 1 = 0 * 16 + 1, digit 1; 1a"
    )
    needle = {"question": "Who likes tea? Reply only with a name."}
    text = "Bo likes tea. Al likes teas. "
    assert solution("needle_haystack", needle, "Bo", text) == "The text says: Bo likes tea. The name is Bo"
    assert solution("needle_haystack", needle, "Al", text) is None
    assert solution("sudoku", {}, "1") is None


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("( 2 + 3 ) * 4", "2 + 3 = 5; 5 * 4 = 20"),
        ("-( 3 * 4 )", "3 * 4 = 12; -12"),
        ("7", "7"),
        ("7 / 2", None),
        ("7 / 0", None),
        ("2 ** 3", None),
    ],
)
def test_expressions_are_worked_one_operation_at_a_time(expression: str, text: str | None) -> None:
    assert tree_steps(expression) == text


@pytest.mark.parametrize(
    ("equation", "text"),
    [
        ("3*x - 4 = 11", "11 + 4 = 15; 15 / 3 = 5"),
        ("x + 4 = 11", "11 - 4 = 7"),
        ("4 - x = 1", "1 - 4 = -3; -3 / -1 = 3"),
        ("2*x = 8", "8 / 2 = 4"),
        ("x = 8", "8"),
        ("2*x = 7", None),
        ("x*x = 4", None),
        ("x = x", None),
        ("0*x = 4", None),
    ],
)
def test_equations_are_worked(equation: str, text: str | None) -> None:
    assert linear_steps(equation, "x") == text
