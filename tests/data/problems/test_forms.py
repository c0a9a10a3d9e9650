"""Published forms of problems: the final value is the answer, whatever stands around it."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.data.problems import open_problems
from fathom.data.problems.files import ListedProblems, open_file
from fathom.data.problems.forms import PROBLEM_FORMS
from fathom.data.problems.gold import Gold, gold_answer, marked_answer, solved_answer
from fathom.data.row_report import UnusableRow
from fathom.errors import DataError, SpecError
from fathom.posttrain.rewards.accuracy import AccuracyScorer
from fathom.posttrain.rewards.base import RewardInput
from fathom.spec.data_format import PROBLEM_FORMATS
from fathom.spec.problem import FileProblems, Problem
from tests.json_lines import write_json_lines

GSM8K = "Six and nine make <<6+9=15>>15.\n#### 15"
MATH = "We add: $6 + 9 = \\boxed{15}$."


def opened(tmp_path: Path, *rows: Any, **source: Any) -> ListedProblems:
    path = tmp_path / "mine.jsonl"
    write_json_lines(path, rows)
    return open_file(FileProblems(path="mine.jsonl", **source), tmp_path)


def only(tmp_path: Path, row: Any, **source: Any) -> Problem:
    found = opened(tmp_path, {**row, "split": "train"}, **source)
    assert not found.report.problems, found.report.lines()
    return found.problems("train", 0, 1)[0]


@pytest.mark.parametrize(
    ("row", "solution"),
    [
        ({"question": "6 + 9?", "answer": "15"}, None),
        ({"question": "6 + 9?", "answer": 15}, None),
        ({"question": "6 + 9?", "answer": 15.0}, None),
        ({"question": "6 + 9?", "answer": GSM8K}, "Six and nine make 15."),
        ({"question": "6 + 9?", "answer": "#### 15"}, None),
        ({"question": "6 + 9?", "final_answer": "15", "difficulty": 3.5}, None),
        ({"ID": 3, "Problem": "6 + 9?", "Solution": MATH, "Answer": 15}, MATH),
        ({"problem": "6 + 9?", "solution": MATH, "level": "Level 1", "type": "Algebra"}, MATH),
        ({"problem": "6 + 9?", "solution": MATH, "answer": "15", "unique_id": "test/1.json"}, MATH),
        ({"problem": "6 + 9?", "solution": MATH, "answer": ""}, MATH),
        ({"problem": "6 + 9?", "solution": "Long.\nNo mark.", "answer": 15}, "Long.\nNo mark."),
        ({"problem": "6 + 9?", "solution": "$\\boxed{15}$"}, None),
        ({"question": "6 + 9?", "answer": "Add.\nThe answer is: 15"}, "Add.\nThe answer is: 15"),
        ({"question": "6 + 9?", "answer": "相加。\n答案是15。"}, "相加。\n答案是15。"),
        ({"problem": "6 + 9?", "solution": "Add.\n**Final Answer:** $15$"}, "Add.\n**Final Answer:** $15$"),
        ({"problem": "6 + 9?", "solution": "Add.\n**15**"}, "Add.\n**15**"),
        ({"prompt": "6 + 9?", "solution": "15"}, None),
        ({"prompt": [{"role": "user", "content": "6 + 9?"}], "solution": "\\boxed{15}"}, None),
        ({"prompt": "6 + 9?", "ground_truth": ["15"]}, None),
        ({"prompt": "6 + 9?", "answer": "15", "data": [1]}, None),
        (
            {
                "data_source": "openai/gsm8k",
                "prompt": [{"role": "user", "content": "6 + 9?"}],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": "15"},
                "extra_info": {"index": 0, "split": "train", "answer": GSM8K},
            },
            None,
        ),
    ],
)
def test_the_final_value_is_the_answer_in_every_form(tmp_path: Path, row: Any, solution: str | None) -> None:
    found = only(tmp_path, row)
    assert (found.question, found.answer) == ("6 + 9?", "15")
    assert found.details.get("solution") == solution
    scorer = AccuracyScorer("auto")
    for said, right in (("so it is\n15", 1.0), ("It is 5", 0.0)):
        assert scorer.score(RewardInput(prompt="", answer=said, problem=found)) == right


def test_further_columns_are_carried_and_do_not_change_how_answers_are_judged(tmp_path: Path) -> None:
    row = {
        "question": "6 + 9?",
        "answer": "15",
        "level": 3,
        "tags": ["a", {"b": None}],
        "dataset": "gsm8k",
        "tests": "assert f() == 3",
        "long": "x" * 20_000,
        "bad": float("nan"),
    }
    details = only(tmp_path, row).details
    assert details == {
        "level": 3,
        "tags": ["a", {"b": None}],
        "column_dataset": "gsm8k",
        "column_tests": "assert f() == 3",
    }


def test_published_names_of_ids_splits_and_languages_are_read(tmp_path: Path) -> None:
    rows = [
        {"question": "a", "answer": "1", "split": "test", "id": 7},
        {"question": "b", "answer": "1", "split": "validation", "unique_id": "u/1"},
        {"question": "c", "answer": "1", "split": "train", "language": "Chinese"},
    ]
    found = opened(tmp_path, *rows)
    assert [p.id for p in found.problems("held_out", 0, 2)] == ["7", "u/1"]
    assert found.problems("train", 0, 1)[0].language == "zh"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"problem": "p", "solution": "Long.\nNo mark."}, "solution: marks no final answer with #### or \\boxed{}"),
        ({"problem": "p", "solution": {"a": 1}}, "solution: expected text or a number"),
        ({"question": "p", "choices": ["a", "b"], "answer": 1}, "choices: multiple choice is no problem"),
        ({"prompt": "p", "answer": False}, "answer: expected text or a number, got False"),
        ({"prompt": "p", "reward_model": {"style": "model"}}, "reward_model.ground_truth: expected text or a number"),
        ({"prompt": [{"role": "assistant", "content": "x"}], "answer": "1"}, "prompt[0]: is no text of the user"),
        ({"prompt": [], "answer": "1"}, "has no text in 'prompt'"),
        ({"prompt": "a\ud83d", "answer": "1"}, "prompt: has half of a surrogate pair"),
        ({"question": "p", "answer": float("inf")}, "answer: expected text or a number, got inf"),
    ],
)
def test_a_row_without_a_final_value_is_told(tmp_path: Path, row: Any, words: str) -> None:
    good = {name: value if name != "prompt" else "other" for name, value in row.items()}
    good |= {"reward_model": {"ground_truth": "1"}} if "reward_model" in row else {"answer": "1"}
    good |= {name: "fine" for name in ("question", "problem") if name in row}
    good.pop("choices", None)
    found = opened(tmp_path, row, {**good, "split": "train"})
    assert found.report.used == 1
    assert words in found.report.lines()[1]


def test_ambiguous_columns_are_refused_with_choices_that_work(tmp_path: Path) -> None:
    row = {"question": "6 + 9?", "prompt": "Add: 6 + 9?", "answer": "15"}
    with pytest.raises(DataError, match="the columns question, prompt, answer fit more than one form") as caught:
        opened(tmp_path, row)
    assert 'format = "question_answer"' in str(caught.value)
    assert only(tmp_path, row, format="question_answer").question == "6 + 9?"
    assert only(tmp_path, row, format="prompt").question == "Add: 6 + 9?"
    assert only(tmp_path, row, fields={"prompt": "prompt"}).question == "Add: 6 + 9?"


def test_fields_name_the_columns_of_any_file(tmp_path: Path) -> None:
    row = {"Task": "6 + 9?", "Final": 15}
    with pytest.raises(DataError, match="no known form in the columns Task, Final, split"):
        opened(tmp_path, {**row, "split": "train"})
    found = only(tmp_path, row, fields={"question": "Task", "answer": "Final"})
    assert (found.question, found.answer) == ("6 + 9?", "15")


def test_decimals_of_parquet_are_numbers(tmp_path: Path) -> None:
    rows = [{"question": "a", "answer": Decimal("15.00")}, {"question": "b", "answer": Decimal("-0.50")}]
    pq.write_table(pa.Table.from_pylist([row | {"split": "train"} for row in rows]), tmp_path / "mine.parquet")
    found = open_problems(FileProblems(path="mine.parquet"), base=tmp_path).problems("train", 0, 2)
    assert [problem.answer for problem in found] == ["15", "-0.5"]


def test_parquet_and_compressed_problems_are_the_same(tmp_path: Path) -> None:
    rows = [{"question": f"{n} + 1?", "answer": f"One more.\n#### {n + 1}", "split": "train"} for n in range(3)]
    plain = opened(tmp_path, *rows).problems("train", 0, 3)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mine.parquet")
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    for name in ("mine.parquet", "mine.json"):
        assert open_problems(FileProblems(path=name), base=tmp_path).problems("train", 0, 3) == plain
    assert [p.id for p in plain] == ["mine/1", "mine/2", "mine/3"]


def test_sources_of_compressed_files_have_plain_names() -> None:
    for path in ("a/gsm8k.jsonl.gz", "gsm8k.parquet", "x/gsm8k"):
        assert FileProblems(path=path).name == "gsm8k"
    assert FileProblems(path="data/train-*.parquet").name == "train"


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("a\n#### 1,234\n", Gold("1,234", "a")),
        ("#### -3", Gold("-3", None)),
        ("#### Title\ntext", None),
        ("x \\boxed{\\frac{1}{2}} y", Gold("\\frac{1}{2}", "x \\boxed{\\frac{1}{2}} y")),
        ("\\boxed{1} then \\boxed{2}", Gold("2", "\\boxed{1} then \\boxed{2}")),
        ("$\\boxed{4}$", Gold("4", None)),
        ("\\fbox{x} \\boxed{never", None),
        ("15", None),
    ],
)
def test_marks_are_found_where_they_conclude(text: str, gold: Gold | None) -> None:
    assert marked_answer(text) == gold


@given(st.one_of(st.integers(-(10**9), 10**9), st.floats(-1e9, 1e9, allow_nan=False)))
def test_a_number_keeps_its_value(number: int | float) -> None:
    assert float(gold_answer(number, "answer").answer) == number


@given(st.text(), st.text(alphabet=st.characters(exclude_characters="#\n\r{}", codec="ascii"), min_size=1))
def test_a_marked_value_is_found_behind_any_working(working: str, value: str) -> None:
    if not value.strip():
        return
    assert gold_answer(f"{working}\n#### {value}", "answer").answer == value.strip()
    assert solved_answer(f"{working}\n\\boxed{{{value}}}", "solution").answer == value.strip()


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_no_value_is_an_accident(value: Any) -> None:
    try:
        answer = gold_answer(value, "answer").answer
    except UnusableRow as error:
        answer = str(error)
    assert isinstance(answer, str)


def test_a_recipe_may_only_name_formats_and_fields_that_are_known() -> None:
    assert {form.name: {c.name for c in form.columns} for form in PROBLEM_FORMS} == {
        name: set(fields) for name, fields in PROBLEM_FORMATS.items()
    }
    with pytest.raises(SpecError, match="fields: anwser: unknown value 'anwser'"):
        FileProblems(path="x", fields={"anwser": "a"})
