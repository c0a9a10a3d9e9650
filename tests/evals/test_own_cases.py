"""Own questions of every known layout, and what their answers mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fathom.data.row_report import UnusableRow
from fathom.errors import DataError
from fathom.evals.own_cases import gold_index, read_own_cases
from fathom.evals.task_cases import ChoiceCase, ProblemCase
from fathom.inference.task_runs import judge_stated
from tests.json_lines import write_json_lines

ASKED = "Question: Which?\nAnswer:"
LAYOUTS: dict[str, tuple[dict[str, Any], ChoiceCase]] = {
    "MMLU": (
        {"question": "Which?", "choices": ["a", "b"], "answer": 1},
        ChoiceCase("1", ASKED, ("a", "b"), 1),
    ),
    "ARC": (
        {"id": "q", "question": "Which?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
        ChoiceCase("q", ASKED, ("a", "b"), 1),
    ),
    "C-Eval": (
        {"id": 7, "question": "Which?", "A": "a", "B": "b", "C": "c", "D": "d", "answer": "C"},
        ChoiceCase("7", ASKED, ("a", "b", "c", "d"), 2),
    ),
    "HellaSwag": (
        {"ind": 3, "ctx": "A man", "endings": ["runs.", "sits."], "label": "1"},
        ChoiceCase("3", "A man", ("runs.", "sits."), 1),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_multiple_choice_is_read_as_published(layout: str, tmp_path: Path) -> None:
    row, expected = LAYOUTS[layout]
    own = read_own_cases(write_json_lines(tmp_path / "mine.jsonl", [row]))
    assert (list(own.cases), own.task.form, own.task.name) == ([expected], "choices", "mine")


def test_questions_are_used_whole_unless_a_split_is_asked_for(tmp_path: Path) -> None:
    rows = [{"question": f"What is {index} + 1?", "answer": str(index + 1)} for index in range(40)]
    path = write_json_lines(tmp_path / "sums.jsonl", rows)
    whole = read_own_cases(path)
    assert {case.question for case in whole.cases if isinstance(case, ProblemCase)} == {r["question"] for r in rows}
    parts = [read_own_cases(path, split).cases for split in ("train", "held_out")]  # type: ignore[arg-type]
    assert sum(map(len, parts)) == 40
    assert all(parts)


def test_the_answers_of_choices() -> None:
    assert [gold_index(given, ["x", "2", "B"]) for given in (0, "x", "2", "B", "a", "0")] == [0, 0, 1, 2, 0, 0]
    for wrong in (3, -1, True, "z", None, 1.5, "9"):
        with pytest.raises(UnusableRow, match="is none of 3 choices"):
            gold_index(wrong, ["x", "2", "B"])


@pytest.mark.parametrize(
    ("text", "expected", "right"),
    [
        ("So it is 1,800.", "1800", True),
        ("It is 17.", "18", False),
        ("Let me think.\n#### Paris", "Paris", True),
        ("The answer is paris.", "Paris", True),
        ("London", "Paris", False),
    ],
)
def test_answers_in_numbers_and_words_are_judged(text: str, expected: str, right: bool) -> None:
    assert judge_stated(text, expected)[1] is right


def test_questions_of_one_name_are_told_apart(tmp_path: Path) -> None:
    row = LAYOUTS["ARC"][0]
    own = read_own_cases(write_json_lines(tmp_path / "mine.jsonl", [row, row]))
    assert [case.id for case in own.cases] == ["1", "2"]
    with pytest.raises(DataError, match="no such file"):
        read_own_cases(tmp_path / "none.jsonl")
    unknown = write_json_lines(tmp_path / "other.jsonl", [{"ask": "Which?", "say": "a"}])
    with pytest.raises(DataError, match=r"the columns ask, say; known are choices: question, choices, answer;.*rename"):
        read_own_cases(unknown)
