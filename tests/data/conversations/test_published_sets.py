"""Rows in the columns of data sets on the hub are the conversations that their cards mean, or are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fathom.data.conversations import read_conversations
from fathom.data.conversations.forms import Conversation
from fathom.data.forms import AS_FOUND, Columns
from fathom.data.row_report import RowReport
from fathom.errors import DataError

USER, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}


def read(tmp_path: Path, row: Any, columns: Columns = AS_FOUND) -> tuple[list[Conversation], RowReport]:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    report = RowReport()
    return list(read_conversations(tmp_path / "rows.jsonl", report, columns)), report


@pytest.mark.parametrize(
    "row",
    [
        {"conversation_id": 1, "conversation": [{"human": "2+2?", "assistant": "4"}], "dataset": "moss"},
        {"source": "Airoboros", "conversation": [{"input": "2+2?", "output": "4"}]},
        {"conversation_hash": "x", "model": "gpt-4", "conversation": [USER, ANSWER], "toxic": False},
        {"items": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        {"kind": "MRC", "input": "2+2?", "target": "4"},
        {"inputs": "2+2?", "targets": "4", "task": "sums"},
        {"prompt": "2+2?", "response": "4", "source": "x"},
        {"input": [USER], "output": "4", "category": "math"},
        {"problem": "2+2?", "generated_solution": "4", "expected_answer": "4"},
    ],
    ids=["firefly", "capybara", "wildchat", "items", "firefly-1.1M", "flan", "gpt4all", "nemotron", "openmathinstruct"],
)
def test_published_columns_are_one_conversation(tmp_path: Path, row: Any) -> None:
    (found,), report = read(tmp_path, row)
    assert list(found.messages) == [USER, ANSWER]
    assert not report.problems


def test_calls_that_answer_a_query_are_the_assistants(tmp_path: Path) -> None:
    tool = {"name": "add", "description": "Adds.", "parameters": {"a": {"type": "int"}}}
    row = {
        "id": 0,
        "query": "2+2?",
        "answers": json.dumps([{"name": "add", "arguments": {"a": 2}}]),
        "tools": json.dumps([tool]),
    }
    (found,), _ = read(tmp_path, row)
    asked, called = found.messages
    assert asked == USER
    assert called["role"] == "assistant"
    assert called["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 2}}
    assert found.tools == ({"type": "function", "function": tool},)


def test_solutions_are_learned_only_where_the_recipe_says_so(tmp_path: Path) -> None:
    row = {"problem": "2+2?", "solution": "4", "lang": "python"}
    with pytest.raises(DataError, match=r'problem, solution do not say what is learned; set format = "solution"'):
        read(tmp_path, row)
    (found,), _ = read(tmp_path, row, Columns("solution"))
    assert list(found.messages) == [USER, ANSWER]
    both = {"question": "2+2?", "solution": "4", "answer": "no"}
    with pytest.raises(DataError, match=r'format = "question_answer" .* or format = "solution"'):
        read(tmp_path, both)
    (found,), _ = read(tmp_path, both, Columns("solution"))
    assert list(found.messages) == [USER, ANSWER]


def test_a_context_stands_before_its_question(tmp_path: Path) -> None:
    row = {"Body": "Two and two.", "Question": "How many?", "Answer": "4"}
    (found,), _ = read(tmp_path, row, Columns("question_answer"))
    assert found.messages[0]["content"] == "Two and two.\nHow many?"


def test_turns_before_two_answers_are_not_learned_alone(tmp_path: Path) -> None:
    talk = [USER, {"role": "assistant", "content": "five"}, USER]
    row = {"conversations": talk, "chosen": ANSWER, "rejected": {"role": "assistant", "content": "3"}}
    found, report = read(tmp_path, row)
    assert not found
    assert 'set format = "chosen"' in report.first
    (found_chosen,), _ = read(tmp_path, row, Columns("chosen"))
    assert list(found_chosen.messages) == [*talk, ANSWER]
    assert found_chosen.learn[:3] == (False, False, False)


@pytest.mark.parametrize("completion", [["4", "five"], [["4"], ["five"]]])
def test_a_list_of_texts_is_no_completion(tmp_path: Path, completion: Any) -> None:
    found, report = read(tmp_path, {"prompt": "2+2?", "completion": completion})
    assert not found
    assert report.problems["malformed"] == 1


@pytest.mark.parametrize("content", ["", "  \n"])
def test_an_empty_answer_is_not_learned(tmp_path: Path, content: str) -> None:
    found, report = read(tmp_path, {"messages": [USER, {"role": "assistant", "content": content}]})
    assert not found
    assert "turn 2, of the assistant, is empty" in report.first
    masked = {"role": "assistant", "content": content, "weight": 0}
    (kept,), _ = read(tmp_path, {"messages": [USER, masked, USER, ANSWER]})
    assert kept.learn[1] is False


@pytest.mark.parametrize(
    "row",
    [
        {"message_tree_id": "x", "tree_state": "ready", "prompt": {"text": "2+2?", "replies": []}},
        {"message_id": "x", "message_tree_id": "x", "text": "2+2?", "role": "prompter"},
    ],
)
def test_trees_of_messages_are_refused_with_what_to_do(tmp_path: Path, row: Any) -> None:
    with pytest.raises(DataError, match=r"messages of trees \(OpenAssistant\): .* write each path from a prompt"):
        read(tmp_path, row)
