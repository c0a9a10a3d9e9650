"""``fathom generate --input``: a file of prompts becomes a file of answers, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fathom
from tests.json_lines import read_json_lines, write_json_lines

GREEDY = ("--max-tokens", "6", "--temperature", "0")


def test_rows_of_every_form_are_answered_as_the_library_answers(finished: Path, tmp_path: Path, call) -> None:
    model = fathom.load(finished)
    rows = [{"prompt": "The river", "note": 7}, {"prompt": [{"role": "user", "content": "The road"}], "id": "mine"}]
    out = tmp_path / "made" / "answers.jsonl"
    done = call("generate", finished, "--input", write_json_lines(tmp_path / "p.jsonl", rows), "--out", out, *GREEDY)
    assert done.code == 0, done.err
    assert "answers.jsonl: 2 answers" in done.err
    first, second = read_json_lines(out)
    expected = model.chat("The river", max_tokens=6, temperature=0)
    assert first["generated_text"] == expected.text
    assert (first["id"], first["note"], first["prompt"]) == (1, 7, "The river")
    counts = (expected.finish_reason, expected.usage.prompt_tokens, expected.usage.completion_tokens)
    assert (first["finish_reason"], first["prompt_tokens"], first["completion_tokens"]) == counts
    assert (second["id"], second["prompt"]) == ("mine", rows[1]["prompt"])
    assert [path.name for path in out.parent.iterdir()] == ["answers.jsonl"]
    (tmp_path / "p.txt").write_text("The river\n\nThe road\n")
    call("generate", finished, "--input", tmp_path / "p.txt", "--out", tmp_path / "t.jsonl", "--no-chat", *GREEDY)
    texts = model.generate(["The river", "The road"], max_tokens=6, temperature=0)
    assert [row["generated_text"] for row in read_json_lines(tmp_path / "t.jsonl")] == [str(text) for text in texts]
    asked = {
        "question": {"question": "The river", "answer": "deep"},
        "instruction": {"instruction": "The river", "input": ""},
        "messages": {"messages": [{"role": "user", "content": "The river"}]},
        "sharegpt": {"conversations": [{"from": "human", "value": "The river"}]},
        "text": {"text": "The river"},
    }
    for name, row in asked.items():
        source = write_json_lines(tmp_path / f"{name}.jsonl", [row])
        call("generate", finished, "--input", source, "--out", tmp_path / f"{name}.out", *GREEDY)
        (found,) = read_json_lines(tmp_path / f"{name}.out")
        assert found["generated_text"] == expected.text
        assert found.items() >= row.items()


def test_a_broken_row_is_named_and_nothing_is_written(finished: Path, tmp_path: Path, call) -> None:
    source, out = tmp_path / "p.jsonl", tmp_path / "a.jsonl"
    good = '{"prompt": "The river"}\n'
    faults = {
        '{"prompt": \n': ("p.jsonl, line 2: not JSON", "--skip-bad"),
        '{"other": "x"}\n': ("line 2: has no prompt",),
        '{"prompt": " "}\n': ("line 2: prompt: is empty",),
        '{"prompt": "x", "finish_reason": "y"}\n': ("line 2: has a column 'finish_reason'", "rename it"),
        '{"prompt": [{"role": "usr", "content": "x"}]}\n': ("line 2: ", "role"),
        json.dumps({"prompt": "the river " * 200}) + "\n": ("line 2: prompt: ", "exceed the context of 192"),
    }
    for line, words in faults.items():
        source.write_text(good + line)
        done = call("generate", finished, "--input", source, "--out", out, *GREEDY)
        assert done.code == 2
        for word in words:
            assert word in done.err.splitlines()[-1]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["p.jsonl"]
        done = call("generate", finished, "--input", source, "--out", out, "--skip-bad", *GREEDY)
        assert "1 of 2 rows are used" in done.err
        assert len(read_json_lines(out)) == 1
        out.unlink()


def test_options_that_make_no_sense(finished: Path, tmp_path: Path, call) -> None:
    source, out = write_json_lines(tmp_path / "p.jsonl", [{"prompt": "x"}]), tmp_path / "a.jsonl"
    call("generate", finished, "--input", source).refused("--out: is left out beside --input")
    call("generate", finished, "--out", out).refused("--input: is left out beside --out")
    call("generate", finished, "--input", source, "--out", out, "--prompt", "x").refused("--prompt: does not go with")
    call("generate", finished, "--prompt", "x", "--skip-bad").refused("--skip-bad: is about a file of prompts")
    call("generate", finished, "--input", source, "--out", source).refused("already exists; give another --out")
    call("generate", finished, "--input", tmp_path / "p.md", "--out", out).refused("is no file of prompts")
    empty = tmp_path / "e.jsonl"
    empty.write_text("\n")
    call("generate", finished, "--input", empty, "--out", out).refused("holds no prompt")
    unknown = write_json_lines(tmp_path / "u.jsonl", [{"story": "x"}])
    call("generate", finished, "--input", unknown, "--out", out).refused("story", "prompt")


@pytest.mark.slow
def test_finished_rows_are_not_made_again_after_a_kill(finished: Path, tmp_path: Path, call) -> None:
    source = write_json_lines(tmp_path / "p.jsonl", [{"prompt": f"The river {index}"} for index in range(90)])
    out, journal = tmp_path / "a.jsonl", tmp_path / "a.jsonl.journal"
    arguments = ("generate", str(finished), "--input", str(source), "--out", str(out), "--max-tokens", "16")
    command = [sys.executable, "-m", "fathom", *arguments]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}) as running:
        while running.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 3):
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    assert not out.exists()
    with journal.open("ab") as file:
        file.write(b'{"number": 89, "answ')  # cut short by the kill
    kept = {row["number"]: row["answer"] for row in map(json.loads, journal.read_text().splitlines()[1:-1])}
    assert 0 < len(kept) < 90
    refused = call(*arguments, "--seed", "5")
    assert (refused.code, "was begun with other options; give the same" in refused.err) == (2, True)
    done = call(*arguments)
    assert done.code == 0, done.err
    assert f"90 answers, {len(kept)} of them before" in done.err
    rows = read_json_lines(out)
    assert [row["id"] for row in rows] == list(range(1, 91))
    for number, answer in kept.items():
        assert rows[number].items() >= answer.items()
    assert not journal.exists()
