"""Two models to a table, and two hundred prompts to a file: one command each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.journeys.terminal import Terminal
from tests.json_lines import write_json_lines

pytestmark = pytest.mark.slow
Publish = Callable[[str], Path]


def test_two_models_become_a_table(terminal: Terminal, publish: Publish) -> None:
    rows = [
        {"question": f"the river {i}", "choices": ["see the road", "find"], "answer": "AB"[i % 2]} for i in range(8)
    ]
    write_json_lines(terminal.folder / "mine.jsonl", rows)
    first, second = publish("tiny-llama"), publish("tiny-qwen2")
    typed = terminal.type(f"fathom evaluate {first} {second} --problems mine.jsonl --out table.md")
    assert "points more than" in typed.out
    table = (terminal.folder / "table.md").read_text().splitlines()
    assert [line.split(" | ")[:3] for line in table[2:]] == [["| mine", str(name), "8"] for name in (first, second)]
    assert not list(terminal.folder.glob("*.journal*"))


def test_two_hundred_prompts_become_a_file_of_answers(terminal: Terminal, publish: Publish) -> None:
    prompts = "".join(json.dumps({"prompt": f"the tower {number}", "number": number}) + "\n" for number in range(200))
    (terminal.folder / "prompts.jsonl").write_text(prompts)
    command = f"fathom generate {publish('tiny-llama')} --input prompts.jsonl --out answers.jsonl --max-tokens 8"
    assert "200 answers" in terminal.type(command).err
    answers = [json.loads(line) for line in (terminal.folder / "answers.jsonl").read_text().splitlines()]
    assert [answer["number"] for answer in answers] == list(range(200))
    assert all(answer["completion_tokens"] <= 8 and answer["finish_reason"] in ("stop", "length") for answer in answers)
    assert "already exists" in terminal.type(command, code=2).err
    broken = terminal.folder / "broken.jsonl"
    broken.write_text(prompts + "{\n")
    again = command.replace("prompts.jsonl", "broken.jsonl").replace("answers.jsonl", "more.jsonl")
    assert "broken.jsonl, line 201: not JSON" in terminal.type(again, code=2).err
    assert not (terminal.folder / "more.jsonl").exists()
