"""``fathom inspect FILE`` says what the columns of a data file mean, as a run would read them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

MESSAGES = [
    {"role": "user", "content": "2+2? [bold]"},
    {"role": "assistant", "content": "five", "weight": 0},
    {"role": "user", "content": "sure?"},
    {"role": "assistant", "content": "4"},
]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def lines_of(out: str) -> dict[str, str]:
    return {line[:19].strip(): line[19:].rstrip() for line in out.splitlines() if line.startswith("  ")}


def test_conversations_are_shown_with_their_columns_loss_and_problems(tmp_path: Path, call: Any) -> None:
    rows = (
        {"messages": MESSAGES, "source": "x"},
        "{",
        {"prompt": "a", "completion": "b"},
        {"messages": [{"role": "x"}]},
    )
    done = call("inspect", write(tmp_path / "chat.jsonl", *rows))
    assert done.code == 0, done.err
    lines = lines_of(done.out)
    assert done.out.splitlines()[0].endswith("chat.jsonl  4 rows, 1 of them unreadable")
    assert lines["for"] == 'a step of kind sft; format = "messages"'
    assert lines["messages"] == "the turns, with role and content"
    assert lines["ignored"] == "source, prompt, completion"
    assert lines["used"] == "1 row"
    assert lines["other form"].startswith("1 row, first: chat.jsonl, line 3: has the form prompt_completion")
    assert lines["malformed"].startswith("2 rows, first: chat.jsonl, line 2: not JSON")
    assert lines["* assistant"] == "4"
    assert lines["assistant"] == "five"
    assert "2+2? [bold]" in done.out


def test_json_of_every_kind(tmp_path: Path, call: Any) -> None:
    pair = {"prompt": "2+2?", "chosen": "4", "rejected": "5", "score": 3}
    rows = [{"question": f"{n}+1?", "answer": f"One more.\n#### {n + 1}", "level": 1} for n in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "gsm8k.parquet")
    found = json.loads(call("inspect", tmp_path / "gsm8k.parquet", "--json").out)
    (use,) = found["uses"]
    assert (use["kind"], use["used"], use["ignored"]) == ("problems", 20, ["level"])
    assert use["sample"]["answer"] == "1"
    assert use["sample"]["train"] + use["sample"]["held_out"] == 20
    assert [(c["kind"], c["format"]) for c in found["choices"]] == [("conversations", "question_answer")]
    found = json.loads(call("inspect", write(tmp_path / "p.jsonl", pair), "--json").out)
    (use,) = found["uses"]
    assert (use["kind"], use["format"], use["ignored"]) == ("preferences", "preference", ["score"])
    assert use["sample"]["chosen"]["content"] == "4"
    (tmp_path / "text.jsonl.gz").write_bytes(gzip.compress(b'{"text": "once", "url": "x"}\n'))
    (use,) = json.loads(call("inspect", tmp_path / "text.jsonl.gz", "--json").out)["uses"]
    assert (use["kind"], use["columns"], use["used"]) == ("corpus", {"text": "a document's text"}, 1)


def test_an_ambiguous_file_lists_its_choices_and_each_can_be_tried(tmp_path: Path, call: Any) -> None:
    path = write(tmp_path / "both.jsonl", {"prompt": "p", "completion": "c", "messages": MESSAGES})
    done = call("inspect", path)
    assert 'format = "messages": OpenAI messages' in done.out
    assert 'format = "prompt_completion": prompt and completion' in done.out
    assert lines_of(call("inspect", path, "--format", "prompt_completion").out)["* assistant"] == "c"
    assert lines_of(call("inspect", path, "--field", "prompt=prompt").out)["* assistant"] == "c"
    questions = write(tmp_path / "q.jsonl", {"question": "2+2?", "answer": "4"})
    done = call("inspect", questions, "--kind", "conversations", "--format", "question_answer")
    assert lines_of(done.out)["* assistant"] == "4"


def test_a_form_that_no_step_reads_is_named(tmp_path: Path, call: Any) -> None:
    rows = [{"prompt": "2+2?", "completion": "4", "label": good} for good in (True, False)]
    done = call("inspect", write(tmp_path / "kto.jsonl", *rows))
    assert "preferences: single answers with a label (KTO)" in done.out
    assert lines_of(done.out)["refused"].startswith("an answer has none to compare it with")
    assert lines_of(done.out)["nothing learned"].startswith("1 row, first: kto.jsonl, line 2: label is false")


def test_conversations_of_which_nothing_is_learned_are_not_counted_as_used(tmp_path: Path, call: Any) -> None:
    row = {"messages": MESSAGES[:1], "ground_truth": "4"}
    found = json.loads(call("inspect", write(tmp_path / "rlvr.jsonl", row), "--json").out)
    conversations, problems = found["uses"]
    assert conversations["used"] == 0
    assert conversations["problems"]["nothing_learned"][0] == 1
    assert (problems["format"], problems["used"], problems["sample"]["answer"]) == ("messages", 1, "4")


def test_long_answers_are_offered_as_choices_rather_than_as_problems(tmp_path: Path, call: Any) -> None:
    row = {"question": "How?", "answer": "It was signed after many months of talks. " * 8}
    found = json.loads(call("inspect", write(tmp_path / "qa.jsonl", row), "--json").out)
    assert not found["uses"]
    assert [c["format"] for c in found["choices"]] == ["question_answer", "free_answer"]


def test_text_is_described_as_a_corpus_with_what_is_left_out(tmp_path: Path, call: Any) -> None:
    notes = tmp_path / "notes"
    (notes / ".obsidian").mkdir(parents=True)
    (notes / ".obsidian" / "app.json").write_text("{}")
    (notes / "a.md").write_text("---\ntags: [x]\n---\n# A note\n")
    (notes / "b.ipynb").write_text("{}")
    done = call("inspect", notes)
    assert done.code == 0, done.err
    assert "corpus: documents of text" in done.out
    assert "left out         hidden files and folders: 1, e.g. .obsidian" in done.out
    assert "left out         files of other kinds: 1, e.g. b.ipynb" in done.out
    assert lines_of(done.out)["used"] == "1 row"
    (notes / "c.py").write_text("print(1)\n")
    (use,) = json.loads(call("inspect", notes / "c.py", "--json").out)["uses"]
    assert (use["kind"], use["used"], use["sample"]["text"]) == ("corpus", 1, "print(1)")


def test_half_of_a_surrogate_pair_is_shown_as_its_code(tmp_path: Path, call: Any) -> None:
    row = '{"instruction": "a\\ud83d", "output": "b"}'
    done = call("inspect", write(tmp_path / "odd.jsonl", row))
    assert done.code == 0, done.err
    assert lines_of(done.out)["user"] == "a\\ud83d"


def test_a_folder_of_data_is_read_whole(tmp_path: Path, call: Any) -> None:
    (tmp_path / "clone" / "data").mkdir(parents=True)
    for name in ("a", "b"):
        write(tmp_path / "clone" / "data" / f"{name}.jsonl", {"messages": MESSAGES})
    assert call("inspect", tmp_path / "clone").out.splitlines()[0].endswith("2 rows in 2 files")


@pytest.mark.parametrize(
    ("row", "options", "words"),
    [
        ({"a": 1}, [], "no known form in the columns a; known are conversations: messages |"),
        ({"a": 1}, ["--kind", "problems"], "known are question_answer: question, answer"),
        ({"a": 1}, ["--kind", "talks"], "--kind: unknown value 'talks'; use one of conversations"),
        ({"a": 1}, ["--format", "yaml"], "--format: unknown value 'yaml'"),
        ({"a": 1}, ["--field", "prompt"], "--field: 'prompt' names no column; write it as prompt=COLUMN"),
        ("{", [], "holds no row that can be read (rows.jsonl, line 1: not JSON"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, call: Any, row: Any, options: list[str], words: str) -> None:
    call("inspect", write(tmp_path / "rows.jsonl", row), *options).refused(words)


def test_a_missing_file_is_told(tmp_path: Path, call: Any) -> None:
    call("inspect", tmp_path / "gone.parquet").refused("gone.parquet")


def test_a_file_whose_rows_are_all_bad_is_still_described(tmp_path: Path, call: Any) -> None:
    rows = [{"problem": "p", "solution": "Long.\nNo mark."}] * 3
    lines = lines_of(call("inspect", write(tmp_path / "math.jsonl", *rows)).out)
    assert lines["used"] == "0 rows"
    assert lines["malformed"].startswith("3 rows, first: math.jsonl, line 1: solution: marks no final answer")
