"""``fathom evaluate A B``: a table of models and tasks, own questions, files, and going on after an interruption."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from fathom.evals.accuracy import Accuracy
from fathom.evals.comparison import compare
from fathom.evals.pass_at_k import paired_difference
from fathom.inference.journal import Journal
from tests.json_lines import read_json_lines, write_json_lines
from tests.published import Publish, copy_without_template

CHOICES = [
    {"question": f"The river sees the {thing}", "choices": ["garden", "of of"], "answer": index % 2}
    for index, thing in enumerate(("stone", "road", "tower", "friend", "song"))
]
QUESTIONS = [{"question": f"What is {index} + 1?", "answer": str(index + 1)} for index in range(3)]


@pytest.fixture
def asked(finished: Path, tmp_path: Path) -> tuple[str | Path, ...]:
    choices, questions = (
        write_json_lines(tmp_path / "mine.jsonl", CHOICES),
        write_json_lines(tmp_path / "sums.jsonl", QUESTIONS),
    )
    models = (finished, finished / "pretrain")
    return ("evaluate", *models, "--problems", choices, "--problems", questions)


def test_two_models_become_a_table_in_every_form(asked, finished: Path, tmp_path: Path, call) -> None:
    files = {suffix: tmp_path / f"table.{suffix}" for suffix in ("md", "csv", "json", "jsonl")}
    outs = [word for path in files.values() for word in ("--out", path)]
    done = call(*asked, *outs, "--json")
    assert done.code == 0, done.err
    models = [str(finished), str(finished / "pretrain")]
    verdicts: dict[str, dict[str, dict[str, bool]]] = {name: {} for name in models}
    for row in read_json_lines(files["jsonl"]):
        verdicts[row["model"]].setdefault(row["task"], {})[row["id"]] = row["correct"]
    assert [len(each["mine"]) for each in verdicts.values()] == [5, 5]
    assert [len(each["sums"]) for each in verdicts.values()] == [3, 3]
    rows = list(csv.DictReader(files["csv"].read_text().splitlines()))
    assert [(row["task"], row["model"]) for row in rows] == [(t, m) for t in ("mine", "sums") for m in models]
    for row in rows:
        own = verdicts[row["model"]][row["task"]].values()
        assert float(row["accuracy"]) == Accuracy.of(own).value
        assert (float(row["low"]), float(row["high"])) == Accuracy.of(own).interval
        if row["model"] == models[0]:
            assert row["difference"] == ""
        else:
            expected = paired_difference(list(verdicts[models[0]][row["task"]].values()), list(own))
            assert float(row["difference"]) == expected.value
            assert float(row["difference_low"]) == expected.low
    document = json.loads(done.out)
    assert document["comparison"] == json.loads(files["json"].read_text())
    assert list(document["models"]) == models
    assert files["md"].read_text() == call(*asked, "--markdown").out
    assert call(*asked[:2], *asked[3:5], "--cases", "2", "--csv").out.splitlines()[1].split(",")[1:3] == ["mine", "2"]
    assert not list(tmp_path.glob("*.journal*"))


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on(asked, tmp_path: Path, call, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole.jsonl"
    call(*asked, "--out", whole)
    add, out = Journal.add, tmp_path / "out.jsonl"

    def interrupted(self: Journal, record: dict[str, Any]) -> None:
        add(self, record)
        if len(self.records) == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", interrupted)
        done = call(*asked, "--out", out)
    assert (done.code, out.exists()) == (130, False)
    assert "the same command goes on" in done.err
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(Journal, "add", lambda self, record: (made.append(record), add(self, record)))
    refused = call(*asked, "--out", out, "--cases", "1")
    assert (refused.code, "was begun with other tasks" in refused.err) == (2, True)
    assert call(*asked, "--out", out).code == 0
    assert len(made) == 2 * 8 - 7
    drop = ("logprobs",)
    left, right = (
        [{k: v for k, v in row.items() if k not in drop} for row in read_json_lines(path)] for path in (out, whole)
    )
    assert left == right


def test_models_are_compared_on_the_cases_that_both_have() -> None:
    first = {"t": {"a": True, "b": False, "c": True}}
    second = {"t": {"b": True, "c": True, "d": False}}
    cells = compare({"A": first, "B": second})
    assert [cell.accuracy for cell in cells] == [Accuracy(correct=2, n=3)] * 2
    assert cells[0].difference is None
    assert cells[1].difference == paired_difference([False, True], [True, True])


def test_a_chat_is_asked_only_of_models_with_a_template(finished: Path, publish: Publish, tmp_path: Path, call) -> None:
    questions = write_json_lines(tmp_path / "sums.jsonl", QUESTIONS)
    bare = copy_without_template(publish("tiny-llama"), tmp_path / "bare")
    base, chat = ("evaluate", finished, bare, "--problems", questions), "--apply-chat-template"
    out = tmp_path / "t.md"
    refused = call(*base, chat, "--out", out)
    refused.refused(f"{bare}: has no chat template; leave --apply-chat-template out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "sums.jsonl"]
    assert call(*base, "--cases", "1").code == 0
    assert call(*base[:2], *base[3:], chat, "--cases", "1").code == 0
    choices = write_json_lines(tmp_path / "mine.jsonl", CHOICES)
    call(*base[:2], chat, "--problems", choices).refused("mine is multiple choice, which is scored as text")
    call(*base[:2], chat).refused("--apply-chat-template: is about tasks")


def test_what_cannot_be_evaluated_is_refused(finished: Path, tmp_path: Path, call) -> None:
    mine = write_json_lines(tmp_path / "mine.jsonl", CHOICES)
    base = ("evaluate", finished, "--problems", mine)
    call(*base, "--out", tmp_path / "t.xlsx").refused("t.xlsx has no known ending", ".md, .csv, .json or .jsonl")
    call(*base, "--cases", "many").refused("--cases: 'many' is no number of cases")
    call(*base, "--split", "train").refused("--split", "is multiple choice, which is used whole")
    call("evaluate", finished, "--split", "train").refused("--split: is about --problems")
    call("evaluate", finished, "--problems", tmp_path / "none.jsonl").refused("there is no such file")
    call("evaluate", finished, "--task", "gsm_symbolic", "--cases", "all").refused("is generated without end")
    call("evaluate", finished, "--markdown").refused("--markdown or --csv: is about tasks")
    wrong = write_json_lines(tmp_path / "wrong.jsonl", [{"question": "x", "choices": ["a", "b"], "answer": "c"}])
    call("evaluate", finished, "--problems", wrong).refused("answer: 'c' is none of 2 choices")
    unknown = write_json_lines(tmp_path / "unknown.jsonl", [{"story": "x"}])
    call("evaluate", finished, "--problems", unknown).refused("columns story", "question, choices, answer", "rename")
    call(*base, "--problems", write_json_lines(tmp_path / "MINE.jsonl", CHOICES)).refused(
        "--problems: the names", "differ in case"
    )


def test_a_model_that_is_not_there_is_refused_before_any_is_measured(finished: Path, tmp_path: Path, call) -> None:
    mine = write_json_lines(tmp_path / "mine.jsonl", CHOICES)
    asked = ("evaluate", finished, tmp_path / "absent", "--problems", mine, "--out", tmp_path / "t.md")
    done = call(*asked)
    done.refused("absent: no such file")
    assert "mine" not in done.err
    call("evaluate", finished, "--adapter", tmp_path / "absent", *asked[3:]).refused("absent")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]
