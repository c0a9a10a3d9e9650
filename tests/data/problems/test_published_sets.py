"""Problems in the columns of data sets on the hub: the question is whole, and only final values are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fathom.data.problems.files import ListedProblems, open_file
from fathom.errors import DataError
from fathom.spec.problem import FileProblems
from tests.json_lines import write_json_lines

LONG = "The treaty was signed after many months of talks between both sides. " * 8


def opened(tmp_path: Path, *rows: Any, name: str = "mine.jsonl", **source: Any) -> ListedProblems:
    write_json_lines(tmp_path / name, rows)
    return open_file(FileProblems(path=name, **source), tmp_path)


@pytest.mark.parametrize(
    ("row", "question", "answer"),
    [
        ({"messages": [{"role": "user", "content": "2+2?"}], "ground_truth": "4", "dataset": "gsm8k"}, "2+2?", "4"),
        ({"messages": [{"role": "user", "content": "2+2?"}], "reference_answer": "4"}, "2+2?", "4"),
        ({"Body": "Two, two.", "Question": "Sum?", "Answer": "4.0", "Equation": "2+2"}, "Two, two.\nSum?", "4.0"),
        ({"question": "2+2?", "solution": "4", "cot_type": "math"}, "2+2?", "4"),
        ({"problem": "2+2?", "generated_solution": "\\boxed{4}", "expected_answer": "4"}, "2+2?", "4"),
        ({"question": "2+2?", "final_ans": "4"}, "2+2?", "4"),
        (
            {"prompt": [{"role": "user", "content": "2+2?"}], "reward_model": {"ground_truth": '["\\\\frac{8}{2}"]'}},
            "2+2?",
            "\\frac{8}{2}",
        ),
        ({"question": "2+2?", "answer": "Add two and two to get four. " * 6 + "So the answer is 4."}, "2+2?", "4"),
    ],
    ids=["tulu3-rlvr", "openai-rft", "svamp", "s1k", "openmathinstruct", "multiarith", "skywork-or1", "orca-math"],
)
def test_published_columns_are_one_problem(tmp_path: Path, row: Any, question: str, answer: str) -> None:
    found = opened(tmp_path, {**row, "split": "train"})
    assert not found.report.problems, found.report.lines()
    (problem,) = found.problems("train", 0, 1)
    assert (problem.question, problem.answer) == (question, answer)


def test_answers_in_words_are_refused_as_problems_with_choices_that_work(tmp_path: Path) -> None:
    row = {"question": "How?", "answer": LONG, "split": "train"}
    with pytest.raises(DataError, match=r'do not say what is learned; set format = "free_answer"'):
        opened(tmp_path, row)
    assert opened(tmp_path, row, format="free_answer").problems("train", 0, 1)[0].answer == LONG
    marked = {"question": "How?", "answer": f"{LONG}\n#### 4", "split": "train"}
    found = opened(tmp_path, marked, row)
    assert found.report.used == 1
    assert "a text of" in found.report.first
    assert found.problems("train", 0, 1)[0].answer == "4"


@pytest.mark.parametrize("answer", ["proof", "notfound", "NaN"])
def test_what_says_that_there_is_no_answer_is_none(tmp_path: Path, answer: str) -> None:
    rows = [{"problem": "Prove.", "solution": "QED", "answer": answer}, {"problem": "2+2?", "answer": "4"}]
    found = opened(tmp_path, *rows)
    assert (found.report.used, found.report.problems["malformed"]) == (1, 1)
    assert "is no final value" in found.report.first


@pytest.mark.parametrize("name", ["test.jsonl", "gsm8k-test.jsonl", "validation-00000-of-00001.jsonl"])
def test_a_file_named_as_a_held_out_split_is_never_trained_on(tmp_path: Path, name: str) -> None:
    rows = [{"question": f"{n}+1?", "answer": n + 1} for n in range(30)]
    found = opened(tmp_path, *rows, name=name)
    assert (found.size("train"), found.size("held_out")) == (0, 30)
    with pytest.raises(DataError, match=r"so all are held out; name the file of training problems, or give rows"):
        found.problems("train", 0, 1)
    trained = opened(tmp_path, *[{**row, "split": "train"} for row in rows], name=name)
    assert trained.size("train") == 30
    assert opened(tmp_path, *rows, name="train.jsonl").size("train") not in (0, 30)


def test_a_folder_named_as_a_held_out_split_is_never_trained_on(tmp_path: Path) -> None:
    (tmp_path / "MATH" / "test").mkdir(parents=True)
    for n in range(20):
        row = {"problem": f"{n}+1?", "solution": f"\\boxed{{{n + 1}}}"}
        (tmp_path / "MATH" / "test" / f"{n}.json").write_text(json.dumps(row))
    found = open_file(FileProblems(path="MATH/test"), tmp_path)
    assert (found.size("train"), found.size("held_out")) == (0, 20)


def test_the_split_of_verls_further_information_is_kept(tmp_path: Path) -> None:
    def row(number: int, split: str) -> Any:
        asked = [{"role": "user", "content": f"{number}+1?"}]
        return {"prompt": asked, "reward_model": {"ground_truth": "4"}, "extra_info": {"split": split}}

    found = opened(tmp_path, *[row(n, "test") for n in range(20)])
    assert (found.size("train"), found.size("held_out")) == (0, 20)
    assert opened(tmp_path, *[row(n, "train") for n in range(20)]).size("train") not in (0, 20)


def test_a_pattern_over_several_splits_is_refused(tmp_path: Path) -> None:
    for name in ("train-0.jsonl", "test-0.jsonl"):
        opened(tmp_path, {"question": name, "answer": 1}, name=name)
    with pytest.raises(DataError, match=r"holds files of several splits \(test, train\); name one"):
        open_file(FileProblems(path="*.jsonl"), tmp_path)
    assert open_file(FileProblems(path="train-*.jsonl"), tmp_path).report.used == 1
