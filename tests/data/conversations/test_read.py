"""Files of conversations: bad lines are reported by number and skipped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fathom.chat.templates import TEMPLATES
from fathom.data.conversations import (
    Conversation,
    encode_conversations,
    encode_with_loss_mask,
    read_conversations,
)
from fathom.data.row_report import RowReport
from fathom.errors import DataError
from fathom.tokenizer import Tokenizer

GOOD = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
ASKED = {"role": "user", "content": "x"}


def written(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(texts) + b"\n")
    return path


def encoded(tokenizer: Tokenizer, path: Path, max_tokens: int = 64, **options: Any) -> tuple[int, RowReport]:
    report = RowReport()
    samples = encode_conversations(
        tokenizer, read_conversations(path, report), report, max_tokens=max_tokens, **options
    )
    assert report.used == len(samples)
    return len(samples), report


@pytest.mark.parametrize(
    ("line", "reason", "words"),
    [
        (b"{", "malformed", "not JSON"),
        (b"[" * 100_000, "malformed", "nested too deeply"),
        (b"\xff\xfe", "malformed", "not UTF-8"),
        ([], "malformed", "no JSON object but an array"),
        ({"messages": []}, "malformed", "has no messages"),
        ({"messages": "hi"}, "malformed", "has no messages"),
        ({"messages": ["hi"]}, "malformed", r"messages\[0\].role: expected text"),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "malformed",
            r"messages\[0\].content: expected text or a list",
        ),
        ({"messages": [ASKED, {"role": "assistant", "content": None}]}, "malformed", r"messages\[1\].content"),
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{}]}]}, "malformed", "give the name of the tool"),
        ({"messages": [ASKED], "tools": "f"}, "malformed", "tools: is no JSON"),
        ({"messages": [ASKED], "tools": [3]}, "malformed", "tools: expected a list"),
        ({"messages": [ASKED, {"role": "king", "content": "x"}]}, "unknown_role", r"messages\[1\].role: .*'king'"),
        ({"messages": [ASKED, {"role": "assistant", "content": "x", "reasoning": [1]}]}, "template", "reasoning"),
        ({"messages": [{"role": "user", "content": "\ud800"}, *GOOD["messages"]]}, "template", "surrogates"),
        ({"messages": [ASKED, {"role": "assistant", "content": "five " * 1000}]}, "too_long", "tokens exceed 65"),
        ({"messages": [ASKED]}, "nothing_learned", "no turn of assistant can be trained on"),
    ],
)
def test_a_bad_line_is_told_and_the_others_go_on(
    ours: Tokenizer, tmp_path: Path, line: Any, reason: Any, words: str
) -> None:
    path = written(tmp_path / "chats.jsonl", GOOD, b"", line, GOOD)
    count, report = encoded(ours, path)
    assert count == 2
    assert report.read == 3
    assert dict(report.problems) == {reason: 1}
    problem = report.examples[reason][0]
    assert problem.place == "chats.jsonl, line 3"
    with pytest.raises(DataError, match=words):
        raise DataError(str(problem))
    assert report.lines()[0] == "2 of 3 conversations are used"
    assert report.lines()[1].startswith(f"1 x {reason}: chats.jsonl, line 3: ")
    assert all("\n" not in result for result in report.lines())


def test_a_template_that_raises_is_told_for_each_and_few_are_kept(ours: Tokenizer, tmp_path: Path) -> None:
    twice = {"messages": [{"role": "tool", "content": "x"}, *GOOD["messages"]]}
    path = written(tmp_path / "chats.jsonl", *[twice] * 9, GOOD)
    count, report = encoded(ours, path, template=TEMPLATES["deepseek-llm"], thinking="drop")
    assert (count, report.problems["template"]) == (10, 0)  # tools' results become text where a template knows none
    refusing = "{{ raise_exception('no') if messages | length > 2 }}" + TEMPLATES["fathom"]
    count, report = encoded(ours, path, template=refusing)
    assert (count, report.problems["template"]) == (1, 9)
    assert [problem.place for problem in report.examples["template"]] == [f"chats.jsonl, line {i}" for i in (1, 2, 3)]
    assert "no; fix the messages" in str(report.examples["template"][0])


def test_turns_that_are_left_out_are_counted(ours: Tokenizer, tmp_path: Path) -> None:
    reasoned = {"role": "assistant", "content": "4", "reasoning_content": "two and two"}
    path = written(tmp_path / "chats.jsonl", {"messages": [ASKED, reasoned, ASKED, reasoned]})
    _, report = encoded(ours, path)
    assert report.left_out == 1
    assert report.lines()[1].startswith("1 turns are masked from the loss")


def test_only_bad_lines_is_an_error_that_names_the_first(ours: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of 2 can be used \(chats.jsonl, line 1: not JSON"):
        encoded(ours, written(tmp_path / "chats.jsonl", b"{", {"messages": [ASKED]}))
    with pytest.raises(DataError, match="none of 0 can be used"):
        encoded(ours, written(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="check the path"):
        encoded(ours, tmp_path / "nowhere.jsonl")


def test_tools_reach_the_template_and_conversations_need_no_file(ours: Tokenizer, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    path = written(tmp_path / "chats.jsonl", {**GOOD, "tools": tools})
    report = RowReport()
    (found,) = read_conversations(path, report)
    made = Conversation(messages=tuple(GOOD["messages"]), tools=tuple(tools))
    samples = encode_conversations(ours, [found, made], report, max_tokens=512)
    expected = encode_with_loss_mask(ours, GOOD["messages"], tools=tools)
    assert samples == [replace(expected, key=made.key)] * 2
    assert "weather" in ours.decode(samples[0].tokens)
