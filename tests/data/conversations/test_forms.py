"""Every published form of conversations is the same conversation, and its flags decide what is in the loss."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from datasets import Dataset
from trl import is_conversational_from_value, maybe_convert_to_chatml

from fathom.data.conversations import Conversation, encode_conversations, read_conversations
from fathom.data.conversations.forms import CONVERSATION_FORMS
from fathom.data.forms import AS_FOUND, Columns
from fathom.data.row_report import RowReport
from fathom.errors import DataError, SpecError
from fathom.spec.alignment import ConversationFile
from fathom.spec.data_format import CONVERSATION_FORMATS
from fathom.tokenizer import Tokenizer
from tests.json_lines import write_json_lines

MESSAGES = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
SHAREGPT = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]
SYSTEM = {"role": "system", "content": "Be short."}
CALL = {"name": "weather", "arguments": '{"city": "Rome"}'}
TOOL = {"name": "weather", "parameters": {"type": "object"}}


def read(path: Path, columns: Columns = AS_FOUND) -> tuple[list[Conversation], RowReport]:
    report = RowReport()
    return list(read_conversations(path, report, columns)), report


def read_row(tmp_path: Path, row: Any, **columns: Any) -> Conversation:
    found, report = read(write_json_lines(tmp_path / "rows.jsonl", [row]), Columns(**columns))
    assert not report.problems, report.lines()
    return found[0]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": MESSAGES},
        {"messages": json.dumps(MESSAGES)},
        {"messages": SHAREGPT, "source": "elsewhere", "score": 3},
        {"conversations": SHAREGPT},
        {"conversations": MESSAGES, "system": ""},
        {"conversations": [{"from": "user", "value": "2+2?"}, {"from": "assistant", "value": "4"}], "tools": "[]"},
        {"instruction": "2+2?", "input": "", "output": "4"},
        {"instruction": "2+2?", "response": "4", "category": "sums", "context": ""},
        {"prompt": "2+2?", "completion": "4"},
        {"prompt": "2+2?", "prompt_id": "x", "messages": MESSAGES},
        {"query": "2+2?", "response": "4", "type": "sums"},
        {"system_prompt": "", "question": "2+2?", "response": "4", "id": 3},
        {"conversations": ["2+2?", "4"], "source": "lima"},
        {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
        {"prompt": MESSAGES[:1], "completion": "4"},
    ],
)
def test_published_forms_are_one_conversation(tmp_path: Path, row: Any) -> None:
    found = read_row(tmp_path, row)
    assert list(found.messages) == MESSAGES
    assert found.tools == ()
    assert found.place == "rows.jsonl, line 1"


@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_sharegpt_is_read_as_trl_converts_it(tmp_path: Path, name: str) -> None:
    row = {name: [{"from": "user", "value": "2+2?"}, {"from": "assistant", "value": "4"}]}
    assert is_conversational_from_value({"conversations": row[name]})
    ours = read_row(tmp_path, row)
    assert list(ours.messages) == maybe_convert_to_chatml(json.loads(json.dumps(row)))["messages"]


def test_alpaca_joins_input_history_and_system(tmp_path: Path) -> None:
    row = {
        "instruction": "Add",
        "input": "2+2",
        "output": "4",
        "history": [["1+1?", "2"]],
        "system": "Be short.",
    }
    found = read_row(tmp_path, row)
    history = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    asked = [{"role": "user", "content": "Add\n2+2"}, {"role": "assistant", "content": "4"}]
    assert list(found.messages) == [SYSTEM, *history, *asked]


def test_a_system_column_does_not_follow_a_system_message(tmp_path: Path) -> None:
    found = read_row(tmp_path, {"conversations": [{"from": "system", "value": "Be short."}, *SHAREGPT], "system": "x"})
    assert found.messages[0] == SYSTEM
    assert len(found.messages) == 3


CALLED = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "tool_calls": [{"id": "call_1", "type": "function", "function": CALL}],
    },
    {"role": "tool", "content": '{"sky": "blue"}', "tool_call_id": "call_1"},
    {"role": "assistant", "content": "Blue."},
]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CALLED, "tools": [{"type": "function", "function": TOOL}]},
        {
            "messages": [
                CALLED[0],
                {"role": "assistant", "content": None, "function_call": CALL},
                {"role": "function", "name": "weather", "content": '{"sky": "blue"}'},
                CALLED[3],
            ],
            "functions": [TOOL],
        },
        {
            "conversations": [
                {"from": "human", "value": "Weather?"},
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": '{"sky": "blue"}'},
                {"from": "gpt", "value": "Blue."},
            ],
            "tools": json.dumps([TOOL]),
        },
        {
            "messages": [
                {"role": "user", "content": "Weather?"},
                {"role": "tool_call", "content": json.dumps([CALL])},
                {"role": "tool_response", "content": '{"sky": "blue"}'},
                {"role": "assistant", "content": "Blue."},
            ],
            "tools": json.dumps([TOOL]),
        },
        {
            "conversations": [
                {"role": "user", "content": "Weather?"},
                {"role": "function_call", "content": {**CALL, "arguments": {"city": "Rome"}}},
                {"role": "observation", "content": {"sky": "blue"}},
                {"role": "assistant", "content": "Blue."},
            ],
            "tools": [json.dumps(TOOL)],
        },
    ],
)
def test_calls_and_tools_of_every_dialect_train_alike(tmp_path: Path, ours: Tokenizer, row: Any) -> None:
    expected = Conversation(messages=tuple(CALLED), tools=({"type": "function", "function": TOOL},))
    found = read_row(tmp_path, row)
    assert found.tools == expected.tools
    assert found.messages[1]["tool_calls"][0]["id"] == found.messages[2]["tool_call_id"] == "call_1"
    ours_sample, same = encode_conversations(ours, [found, expected], RowReport(), max_tokens=1000)
    assert ours_sample == same
    assert same.key == expected.key


CALLING = {"role": "assistant", "tool_calls": [{"id": "x", "type": "function", "function": CALL}]}


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        ({"content": "4"}, {"content": [{"type": "text", "text": " 4\n"}], "name": "a"}, {"content": "5"}),
        (
            {"content": "4", "reasoning_content": "Two twos."},
            {"content": "<think>\nTwo twos.\n</think>\n\n4"},
            {"content": "4", "reasoning": "Four ones."},
        ),
        (
            CALLING,
            {"content": "", "tool_calls": [{"function": {**CALL, "arguments": {"city": "Rome"}}}]},
            {"tool_calls": [{"function": {**CALL, "arguments": {"city": "Oslo"}}}]},
        ),
    ],
)
def test_the_key_is_of_what_is_said(one: Any, same: Any, other: Any) -> None:
    talks = [
        Conversation(messages=({"role": "system", "content": "x"}, {"role": "assistant", **one})),
        Conversation(messages=({"role": "developer", "content": "x"}, {"role": "assistant", **same})),
        Conversation(messages=({"role": "system", "content": "x"}, {"role": "assistant", **other})),
    ]
    assert talks[0].key == talks[1].key != talks[2].key


def test_calls_that_are_nested_deeply_have_a_key() -> None:
    for depth in (300, 700, 100_000):
        call = {"function": {"name": "f", "arguments": '{"a":' * depth + "1" + "}" * depth}}
        assert Conversation(messages=({"role": "assistant", "tool_calls": [call]},)).key >= 0


def learned_text(tokenizer: Tokenizer, conversation: Conversation, **options: Any) -> str:
    (sample,) = encode_conversations(tokenizer, [conversation], RowReport(), max_tokens=500, **options)
    return tokenizer.decode([t for t, on in zip(sample.tokens, sample.learned, strict=True) if on])


TALK = [
    {"role": "user", "content": "two?"},
    {"role": "assistant", "content": "five"},
    {"role": "user", "content": "three?"},
    {"role": "assistant", "content": "six"},
]


@pytest.mark.parametrize(
    ("flags", "learned"),
    [
        ({}, "fivesix"),
        ({1: {"weight": 0}}, "six"),
        ({1: {"weight": 0.0}, 3: {"weight": 1}}, "six"),
        ({3: {"weight": 0}}, "five"),
        ({3: {"train": False}}, "five"),
        ({1: {"train_on_turn": False}, 3: {"train_on_turn": True}}, "six"),
        ({0: {"train": True}, 3: {"loss": False}}, "two?five"),
        ({1: {"weight": None, "train": None}, 3: {"weight": 0, "train": True}}, "five"),
    ],
)
@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_the_flags_of_turns_decide_the_loss(
    tmp_path: Path, ours: Tokenizer, flags: dict[int, Any], learned: str, column: str
) -> None:
    turns = [turn | flags.get(index, {}) for index, turn in enumerate(TALK)]
    found = read_row(tmp_path, {column: turns})
    assert list(found.messages) == TALK
    assert learned_text(ours, found) == learned


def test_flags_hold_where_tools_stand_in_a_message_of_their_own(tmp_path: Path, ours: Tokenizer) -> None:
    plain = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    turns = [*TALK[:1], TALK[1] | {"weight": 0}, *TALK[2:]]
    found = read_row(tmp_path, {"messages": turns, "tools": [TOOL]})
    assert "five" not in learned_text(ours, found, template=plain)


def test_only_the_completion_is_learned(tmp_path: Path, ours: Tokenizer) -> None:
    found = read_row(tmp_path, {"prompt": TALK[:3], "completion": TALK[3:]})
    assert learned_text(ours, found) == "six"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [*MESSAGES[:1], MESSAGES[1] | {"weight": 0.5}]}, "messages[1].weight: 0.5 is neither 0 nor 1"),
        ({"messages": [*MESSAGES[:1], MESSAGES[1] | {"weight": "0"}]}, "messages[1].weight: '0' is neither 0 nor 1"),
        ({"messages": [*MESSAGES[:1], MESSAGES[1] | {"train_detail": [{}]}]}, "give train = true or false"),
        ({"conversations": [{"from": "oracle", "value": "x"}]}, "conversations[0].role: unknown value 'oracle'"),
        ({"conversations": [{"from": "function_call", "value": "f(x)"}]}, "conversations[0]: is no JSON"),
        ({"conversations": [{"from": "function_call", "value": "[3]"}]}, 'write it as {"name": "...", "arguments"'),
        ({"instruction": "", "output": "4"}, "instruction: is empty"),
        ({"instruction": "x", "output": "4", "history": [["q"]]}, "history[0]: is no pair"),
        ({"instruction": "x", "output": ["4"]}, "output: expected text, got list"),
        ({"prompt": "x", "completion": " "}, "completion: is empty"),
        ({"prompt": "x", "completion": "y", "label": False}, "label is false: a bad answer is not learned"),
        ({"messages": MESSAGES, "tools": [3]}, "tools: expected a list of objects"),
    ],
)
def test_a_row_that_cannot_be_used_is_told(tmp_path: Path, row: Any, words: str) -> None:
    found, report = read(write_json_lines(tmp_path / "rows.jsonl", [row, row]))
    assert found == []
    assert report.problems.total() == 2
    assert words in report.lines()[1]


def test_rows_of_another_form_are_counted_and_named(tmp_path: Path) -> None:
    rows = [{"messages": MESSAGES}, {"prompt": "2+2?", "completion": "4"}, {"messages": MESSAGES}, {"text": "x"}]
    found, report = read(write_json_lines(tmp_path / "rows.jsonl", rows))
    assert len(found) == 2
    assert dict(report.problems) == {"other_form": 1, "malformed": 1}
    assert str(report.examples["other_form"][0]).startswith(
        "rows.jsonl, line 2: has the form prompt_completion, other rows messages"
    )
    assert "rows.jsonl, line 4: has no messages" in str(report.examples["malformed"][0])


def test_ambiguous_columns_are_refused_with_choices_that_work(tmp_path: Path) -> None:
    row = {"prompt": "p", "completion": "c", "messages": MESSAGES}
    path = write_json_lines(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match="the columns prompt, completion, messages fit more than one form") as caught:
        read(path)
    assert 'format = "messages" (OpenAI messages) or format = "prompt_completion"' in str(caught.value)
    assert list(read(path, Columns("messages"))[0][0].messages) == MESSAGES
    assert read(path, Columns("prompt_completion"))[0][0].messages[1]["content"] == "c"
    assert read(path, Columns(fields={"prompt": "prompt"}))[0][0].messages[1]["content"] == "c"


def test_questions_and_preferences_need_a_format(tmp_path: Path) -> None:
    questions = write_json_lines(tmp_path / "q.jsonl", [{"question": "2+2?", "answer": "4"}])
    with pytest.raises(DataError, match=r'set format = "question_answer" \(learns the answers'):
        read(questions)
    assert list(read(questions, Columns("question_answer"))[0][0].messages) == MESSAGES
    pairs = write_json_lines(tmp_path / "p.jsonl", [{"prompt": "2+2?", "chosen": "4", "rejected": "5"}])
    with pytest.raises(DataError, match=r'set format = "chosen" \(learns the chosen answers'):
        read(pairs)
    assert list(read(pairs, Columns("chosen"))[0][0].messages) == MESSAGES
    whole = write_json_lines(tmp_path / "w.jsonl", [{"chosen": MESSAGES, "rejected": MESSAGES[:1]}])
    assert list(read(whole, Columns("chosen"))[0][0].messages) == MESSAGES


def test_fields_say_which_columns_are_meant(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "rows.jsonl", [{"problem": "2+2?", "worked": "4", "prompt": "ignored"}])
    fields = {"prompt": "problem", "completion": "worked"}
    assert list(read(path, Columns(fields=fields))[0][0].messages) == MESSAGES
    with pytest.raises(DataError, match="fields: completion = 'gone', but the columns are problem, worked, prompt"):
        read(path, Columns(fields={**fields, "completion": "gone"}))


def test_unknown_columns_are_refused_with_the_forms_and_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(write_json_lines(tmp_path / "rows.jsonl", [{"a": 1, "b": 2}]))
    line = str(caught.value)
    assert "no known form in the columns a, b; known are messages: messages; sharegpt: conversations" in line
    assert 'set fields = { messages = "COLUMN" }' in line
    fixed = read_row(tmp_path, {"a": MESSAGES, "b": 2}, fields={"messages": "a"})
    assert list(fixed.messages) == MESSAGES


def test_a_recipe_may_only_name_formats_and_fields_that_are_known() -> None:
    assert {form.name: {c.name for c in form.columns} for form in CONVERSATION_FORMS} == {
        name: set(fields) for name, fields in CONVERSATION_FORMATS.items()
    }
    assert ConversationFile(path="x", format="alpaca", fields={"output": "text"}).fields == {"output": "text"}
    for fields, words in (
        ({"format": "alpacca"}, "format: unknown value 'alpacca'; use one of alpaca"),
        ({"fields": {"promt": "x"}}, "fields: promt: unknown value 'promt'"),
        ({"format": "alpaca", "fields": {"prompt": "x"}}, "fields: prompt: unknown value 'prompt'"),
        ({"fields": {"prompt": 3}}, "fields.prompt: 3 is no column"),
    ):
        with pytest.raises(SpecError, match=words):
            ConversationFile(path="x", **fields)  # type: ignore[arg-type]


def test_every_container_gives_the_same_conversations(tmp_path: Path) -> None:
    rows = [
        {"messages": MESSAGES, "tools": None},
        {"messages": [*MESSAGES[:1], MESSAGES[1] | {"weight": 0, "name": "x"}, *MESSAGES], "tools": "[]"},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(lines))
    (tmp_path / "d.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "e.parquet")
    plain = read(tmp_path / "a.jsonl")[0]
    assert len(plain) == 2
    for name in ("b.jsonl.gz", "c.jsonl.zst", "d.json", "e.parquet"):
        found, report = read(tmp_path / name)
        assert not report.problems
        assert [(c.messages, c.learn) for c in found] == [(c.messages, c.learn) for c in plain]
        assert found[1].place.startswith(name)


def test_parquet_that_datasets_writes_gives_the_conversations_of_json(tmp_path: Path) -> None:
    rows = [
        {"messages": MESSAGES, "tools": None},
        {"messages": [MESSAGES[0], MESSAGES[1] | {"weight": 0}, *MESSAGES], "tools": None},
        {"messages": [{**CALLED[0], "name": "ada"}, *CALLED[1:]], "tools": [{"type": "function", "function": TOOL}]},
        {
            "messages": [
                CALLED[0],
                {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": {"x": 1}}}]},
                {"role": "tool", "content": "1", "tool_call_id": "a"},
            ],
            "tools": None,
        },
    ]
    rows[2]["messages"][1] = {
        "role": "assistant",
        "tool_calls": [{"id": "a", "function": {"name": "weather", "arguments": {"city": "Rome"}}}],
    }
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    plain, _ = read(write_json_lines(tmp_path / "rows.jsonl", rows))
    found, report = read(tmp_path / "rows.parquet")
    assert not report.problems
    for ours, theirs in zip(found, plain, strict=True):
        assert (ours.learn, ours.tools) == (theirs.learn, theirs.tools)
        for message, expected in zip(ours.messages, theirs.messages, strict=True):
            assert message.get("content") == expected.get("content")
            assert without(message, "content") == without(expected, "content")


def without(message: Any, name: str) -> Any:
    return {key: value for key, value in message.items() if key != name}


def test_a_cut_array_is_told_and_its_beginning_is_read(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text(json.dumps([{"messages": MESSAGES}] * 3)[:-10])
    found, report = read(tmp_path / "cut.json")
    assert len(found) == 2
    assert any("has no end" in str(problem) for problem in report.examples["malformed"])


def test_a_folder_is_read_whole_unless_it_has_several_splits(tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("x")
    (folder / "dataset_infos.json").write_text("{}")
    for part in (0, 1):
        write_json_lines(folder / "data" / f"train-0000{part}-of-00002.jsonl", [{"messages": MESSAGES}])
    found, _ = read(folder)
    assert [c.place for c in found] == [f"train-0000{part}-of-00002.jsonl, line 1" for part in (0, 1)]
    write_json_lines(folder / "data" / "test-00000-of-00001.jsonl", [{"messages": MESSAGES}])
    with pytest.raises(DataError, match=r"several splits \(test, train\); name one"):
        read(folder)
    assert len(read(folder / "data" / "train-*.jsonl")[0]) == 2
    with pytest.raises(DataError, match="matches no file"):
        read(folder / "*.parquet")


def test_linked_files_are_read_and_a_cycle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "clone").mkdir()
    real = write_json_lines(tmp_path / "blobs" / "0a1b", [{"messages": MESSAGES}])
    (tmp_path / "clone" / "train.jsonl").symlink_to(real)
    assert len(read(tmp_path / "clone")[0]) == 1
    (tmp_path / "clone" / "again").symlink_to(tmp_path / "clone")
    with pytest.raises(DataError, match=r"a symbolic link to .* remove the link"):
        read(tmp_path / "clone")
