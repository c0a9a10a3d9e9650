from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fathom.data.problems import open_problems
from fathom.data.problems.files import open_file
from fathom.errors import DataError
from fathom.spec.problem import FileProblems, Problem


def written(folder: Path, rows: list[Any]) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_problems_are_read_with_their_fields_and_divided_as_told_or_by_hash(tmp_path: Path) -> None:
    result = [
        {"question": "1 + 1", "answer": "2", "split": "held_out", "id": 7, "details": {"solution": "2"}},
        "",
        {"question": "一加一", "answer": "二", "language": "zh", "split": "train"},
        {"question": "一加一", "answer": "二", "language": "zh", "split": "train"},
    ]
    written(tmp_path, result + [{"question": f"{n}?", "answer": str(n)} for n in range(300)])
    task = open_problems(FileProblems(path="mine.jsonl", name="my-task"), base=tmp_path)
    kept, train = task.problems("held_out", 0, 1)[0], task.problems("train", 0, 1)[0]
    assert kept == Problem(id="7", task="my-task", question="1 + 1", answer="2", details={"solution": "2"})
    assert train == Problem(id="my-task/3", task="my-task", question="一加一", answer="二", language="zh")
    sizes = task.size("held_out"), task.size("train")
    assert sizes[0] is not None
    assert sizes[1] is not None
    assert 15 < sizes[0] < 50
    assert sum(sizes) == 302
    renamed = open_problems(FileProblems(path=str(tmp_path / "mine.jsonl"), name="another"))
    assert [p.question for p in renamed.problems("held_out", 0, sizes[0])] == [
        p.question for p in task.problems("held_out", 0, sizes[0])
    ]


def test_a_side_begins_anew_after_its_end(tmp_path: Path) -> None:
    written(tmp_path, [{"question": q, "answer": q, "split": "train"} for q in "abc"])
    task = open_problems(FileProblems(path="mine.jsonl"), base=tmp_path)
    assert "".join(p.question for p in task.problems("train", 2, 5, seed=9)) == "cabca"
    assert task.size("held_out") == 0
    with pytest.raises(DataError, match='mine: no problem is held_out; add some with "split": "held_out"'):
        task.problems("held_out", 0, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ([1], "no JSON object but an array"),
        ({"answer": "1"}, "has no question; rows of questions and answers (GSM8K) have question, answer"),
        ({"question": "q", "answer": True}, "answer: expected text or a number, got True"),
        ({"question": "q", "answer": ["1", "2"]}, "answer: expected text or a number"),
        ({"question": " ", "answer": "1"}, "has no text in 'question'; add it"),
        ({"question": "q", "answer": "1", "language": "fr"}, "language: unknown value 'fr'"),
        ({"question": "q", "answer": "1", "details": 3}, "details: expected a table"),
        ({"question": "q", "answer": "1", "details": {"a": float("nan")}}, "details.a: nan is not finite"),
        ({"question": "q", "answer": "1", "split": "some"}, "has the split 'some'; use train or held_out"),
        ({"question": "q", "answer": "1", "split": ["train"]}, "has the split"),
        (
            {"question": "ok", "answer": "1", "split": "held_out"},
            "is held_out, but its question is train in",
        ),
        ({"problem": "q", "answer": "1"}, "has the form math, other rows question_answer"),
    ],
)
def test_a_bad_row_is_told_counted_and_left_out(tmp_path: Path, row: Any, message: str) -> None:
    written(tmp_path, [{"question": "ok", "answer": "1", "split": "train"}, row])
    task = open_file(FileProblems(path="mine.jsonl"), tmp_path)
    assert (task.size("train"), task.size("held_out")) == (1, 0)
    first, line = task.report.lines("problems")
    assert first == "1 of 2 problems are used"
    assert "mine.jsonl, line 2: " in line
    assert message in line
    assert "\n" not in line


def test_files_without_a_usable_row_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "latin.jsonl").write_bytes(b"\xe9")
    (tmp_path / "bad.jsonl").write_text('{"question": "q", "answer": {}}\n')
    for name, message in (
        ("no", "cannot be read"),
        ("empty", "none of 0 problems can be used"),
        ("latin", "not UTF-8 at byte 0"),
        ("bad", r"none of 1 problems can be used \(bad.jsonl, line 1: answer: expected text"),
    ):
        with pytest.raises(DataError, match=message):
            open_problems(FileProblems(path=f"{name}.jsonl"), base=tmp_path)
