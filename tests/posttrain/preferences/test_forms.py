"""Every published form of preferences is the same pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trl import extract_prompt, maybe_extract_prompt

from fathom.data.forms import AS_FOUND, Columns
from fathom.data.row_report import RowReport
from fathom.errors import DataError, SpecError
from fathom.posttrain.preferences import PREFERENCE_FORMS, Preference, read_preferences
from fathom.spec.alignment import PairFile
from fathom.spec.data_format import PREFERENCE_FORMATS
from tests.json_lines import write_json_lines

ASKED = {"role": "user", "content": "2+2?"}
GOOD = {"role": "assistant", "content": "4"}
BAD = {"role": "assistant", "content": "5"}
SYSTEM = {"role": "system", "content": "Be short."}
HH = "\n\nHuman: 2+2?\n\nAssistant:"


def read(tmp_path: Path, *rows: Any, columns: Columns = AS_FOUND) -> tuple[list[Preference], RowReport]:
    path = tmp_path / "pairs.jsonl"
    write_json_lines(path, rows)
    report = RowReport()
    return list(read_preferences(path, report, columns)), report


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
        {"question": "2+2?", "chosen": "4", "rejected": "5", "system": ""},
        {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [ASKED], "chosen": GOOD, "rejected": "5"},
        {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        {"prompt": "2+2?", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        {
            "prompt": "2+2?",
            "prompt_id": "x",
            "messages": [ASKED, GOOD],
            "chosen": [ASKED, GOOD],
            "rejected": [ASKED, BAD],
            "score_chosen": 8.0,
            "score_rejected": 3.0,
        },
        {"messages": [ASKED], "chosen": "4", "rejected": "5"},
        {
            "conversations": [{"from": "human", "value": "2+2?"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
        {"instruction": "2+2?", "input": "", "chosen": "4", "rejected": "5"},
        {"input": {"messages": [ASKED]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        {
            "input": {"messages": [ASKED], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [GOOD],
            "non_preferred_output": [BAD],
        },
        {
            "instruction": "2+2?",
            "source": "x",
            "completions": [
                {"response": "22", "overall_score": 4.0},
                {"response": "4", "overall_score": 9.5, "model": "a"},
                {"response": "5", "overall_score": 1},
                {"response": "?", "overall_score": None},
            ],
        },
        {"chosen": f"{HH} 4", "rejected": f"{HH} 5"},
        {"prompt": HH, "chosen": " 4", "rejected": " 5"},
    ],
)
def test_published_forms_are_one_pair(tmp_path: Path, row: Any) -> None:
    (found,), report = read(tmp_path, row)
    assert not report.problems
    assert found == Preference(messages=(ASKED,), chosen=GOOD, rejected=BAD, place="pairs.jsonl, line 1")


@pytest.mark.parametrize("before", [[ASKED], [SYSTEM, ASKED], [ASKED, GOOD, {"role": "user", "content": "sure?"}]])
def test_an_implicit_prompt_is_the_one_that_trl_extracts(tmp_path: Path, before: list[Any]) -> None:
    row = {"chosen": [*before, GOOD], "rejected": [*before, BAD]}
    theirs = extract_prompt(row)
    (found,), _ = read(tmp_path, row)
    assert (list(found.messages), [found.chosen], [found.rejected]) == (
        theirs["prompt"],
        theirs["chosen"],
        theirs["rejected"],
    )
    with_text = {"prompt": "2+2?", **row}
    assert maybe_extract_prompt(with_text) == theirs
    assert read(tmp_path, with_text)[0] == [found]


def test_hh_turns_become_messages(tmp_path: Path) -> None:
    text = "\n\nHuman: Hello\n\nAssistant: Hi.\nWhat is it?\n\nHuman: 2+2?\n\nAssistant:"
    (found,), _ = read(tmp_path, {"chosen": f"{text} 4", "rejected": f"{text} 5"})
    assert [message["content"] for message in found.messages] == ["Hello", "Hi.\nWhat is it?", "2+2?"]
    assert found.messages[1]["role"] == "assistant"


def test_a_system_column_comes_first(tmp_path: Path) -> None:
    (found,), _ = read(tmp_path, {"system": "Be short.", "question": "2+2?", "chosen": "4", "rejected": "5"})
    assert found.messages == (SYSTEM, ASKED)


@pytest.mark.parametrize(
    ("row", "reason", "words"),
    [
        ({"prompt": "p", "chosen": "", "rejected": "b"}, "malformed", "chosen: is empty; fill it, or remove the row"),
        ({"prompt": "p", "chosen": "a", "rejected": []}, "malformed", "has no rejected"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "nothing_learned", "both answers are the same"),
        ({"chosen": [ASKED, GOOD], "rejected": [ASKED, GOOD]}, "nothing_learned", "both answers are the same"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "malformed", "has no prompt before the answers"),
        ({"chosen": [ASKED, GOOD, ASKED, GOOD], "rejected": [ASKED, BAD]}, "malformed", "chosen: 3 messages differ"),
        ({"prompt": "p", "chosen": ASKED, "rejected": "b"}, "unknown_role", "chosen: is of the role user"),
        (
            {"instruction": "p", "completions": [{"response": "a", "overall_score": 3}]},
            "malformed",
            "fewer than two have an overall_score",
        ),
        (
            {"instruction": "p", "completions": [{"response": r, "overall_score": 3} for r in "ab"]},
            "nothing_learned",
            "none is better",
        ),
        (
            {"input": {}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
            "malformed",
            "has no input.messages",
        ),
    ],
)
def test_a_row_without_a_pair_is_told(tmp_path: Path, row: Any, reason: Any, words: str) -> None:
    found, report = read(tmp_path, row)
    assert found == []
    assert dict(report.problems) == {reason: 1}
    assert words in str(report.examples[reason][0])


def test_texts_without_a_prompt_are_refused_with_the_forms(tmp_path: Path) -> None:
    row = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    with pytest.raises(DataError, match="no known form in the columns chosen, rejected; known are preference: prompt"):
        read(tmp_path, row)
    (found,), _ = read(tmp_path, {**row, "asked": "2+2?"}, columns=Columns(fields={"prompt": "asked"}))
    assert found.messages == (ASKED,)


def test_single_answers_are_refused_before_they_are_read(tmp_path: Path) -> None:
    row = {"prompt": "2+2?", "completion": "4", "label": True}
    with pytest.raises(DataError, match=r"single answers with a label \(KTO\): an answer has none to compare it with"):
        read(tmp_path, row, row)
    found, report = read(tmp_path, {"prompt": "2+2?", "chosen": "4", "rejected": "5"}, row)
    assert len(found) == report.problems["other_form"] == 1


@pytest.mark.parametrize(
    "row",
    [
        {"input": "2+2?", "chosen": "4", "rejected": "5", "system": "", "rating": [9, 3]},
        {"qid": 1, "question": "2+2?", "response_j": "4", "response_k": "5"},
        {"trajectory": [{"from": "user", "value": "2+2?"}], "chosen": "4", "rejected": "5"},
    ],
    ids=["argilla", "stack-exchange-paired", "ultrainteract"],
)
def test_columns_of_published_pairs_are_known(tmp_path: Path, row: Any) -> None:
    (pair,), report = read(tmp_path, row)
    assert (list(pair.messages), pair.chosen["content"], pair.rejected["content"]) == ([ASKED], "4", "5")
    assert not report.problems


def test_a_list_of_texts_is_no_answer(tmp_path: Path) -> None:
    found, report = read(tmp_path, {"prompt": "2+2?", "chosen": ["4", "yes"], "rejected": ["4", "no"]})
    assert not found
    assert report.problems["malformed"] == 1


def test_parquet_gives_the_pairs_of_json(tmp_path: Path) -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    rows = [{"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, {"chosen": [ASKED, called], "rejected": [ASKED, BAD]}]
    plain, _ = read(tmp_path, *rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    report = RowReport()
    found = list(read_preferences(tmp_path / "pairs.parquet", report))
    assert not report.problems
    assert [(p.messages, p.chosen["content"]) for p in found[:1]] == [(plain[0].messages, "4")]
    assert found[1].chosen["tool_calls"] == plain[1].chosen["tool_calls"]


def test_a_recipe_may_only_name_formats_and_fields_that_are_known() -> None:
    assert {form.name: {c.name for c in form.columns} for form in PREFERENCE_FORMS} == {
        name: set(fields) for name, fields in PREFERENCE_FORMATS.items()
    }
    with pytest.raises(SpecError, match="format: unknown value 'dpo'; use one of alpaca"):
        PairFile(path="x", format="dpo")
