"""Prompts to be answered: the rows of a file of any known form, or the lines of a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fathom.data.conversations.dialogue import read_dialogue, read_tools, with_system
from fathom.data.conversations.forms import alpaca_prompt
from fathom.data.forms import Column, Form, Row, convert_row, optional, recognised, sampled_rows, without_nulls
from fathom.data.records import BadRecord, Record, holds_records, read_records
from fathom.data.row_report import RowProblem, UnusableRow
from fathom.errors import DataError, explain_os_error

TEXT_SUFFIXES = (".txt", ".text")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRow:
    """What is asked: ``text``, or a conversation in OpenAI's format; ``row`` is all that the file says of it.

    ``number`` counts the rows of the file from 0, broken ones included, and ``place`` names this one.
    """

    text: str | None = None
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0
    place: str = ""


def _conversation(value: Any, where: str, row: Row) -> PromptRow:
    dialogue = with_system(read_dialogue(value, where), row.get("system"))
    if dialogue.messages[-1]["role"] == "assistant":
        raise UnusableRow(f"{where}: ends with an answer of the assistant; let it end with what is to be answered")
    return PromptRow(messages=dialogue.messages, tools=read_tools(row.get("tools")))


def _text(value: Any, where: str, row: Row) -> PromptRow:
    if not isinstance(value, str):
        return _conversation(value, where, row)
    if not value.strip():
        raise UnusableRow(f"{where}: is empty; fill it, or remove the row")
    system = row.get("system")
    if isinstance(system, str) and system.strip():
        return PromptRow(messages=({"role": "system", "content": system}, {"role": "user", "content": value}))
    return PromptRow(text=value)


def _messages(row: Row, rest: Row) -> PromptRow:
    return _conversation(row["messages"], "messages", row)


def _prompt(row: Row, rest: Row) -> PromptRow:
    return _text(row["prompt"], "prompt", row)


def _question(row: Row, rest: Row) -> PromptRow:
    context = row.get("context")
    before = f"{context}\n" if isinstance(context, str) and context.strip() else ""
    question = row["question"]
    return _text(before + question if isinstance(question, str) else question, "question", row)


def _instruction(row: Row, rest: Row) -> PromptRow:
    dialogue = with_system(alpaca_prompt(row), row.get("system"))
    if len(dialogue.messages) == 1:
        return PromptRow(text=str(dialogue.messages[0]["content"]))
    return PromptRow(messages=dialogue.messages)


_SYSTEM = optional("system", "the system message", "system_prompt")
_CONTEXT = optional("context", "what it is about, before it", "passage", "body")
PROMPT_FORMS: tuple[Form[PromptRow], ...] = (
    Form(
        name="messages",
        title="conversations to be answered",
        columns=(
            Column("messages", "the turns", ("conversations", "conversation")),
            optional("tools", "tools on offer"),
            _SYSTEM,
        ),
        convert=_messages,
        over=("prompt", "question", "instruction"),
    ),
    Form(
        name="prompt",
        title="prompts",
        columns=(Column("prompt", "a text, or messages", ("text", "input", "inputs", "query")), _SYSTEM),
        convert=_prompt,
    ),
    Form(
        name="question",
        title="questions",
        columns=(Column("question", "what is asked", ("problem",)), _CONTEXT, _SYSTEM),
        convert=_question,
        over=("prompt",),
    ),
    Form(
        name="instruction",
        title="instructions (Alpaca)",
        columns=(
            Column("instruction", "what is asked"),
            optional("input", "what it is about, after it on a line of its own"),
            optional("history", "earlier pairs of turns"),
            _SYSTEM,
        ),
        convert=_instruction,
        over=("prompt", "question"),
    ),
)


def read_prompts(path: Path) -> Iterator[PromptRow | RowProblem]:
    """Yield the prompts of a file in order; a row that cannot be used is a ``RowProblem``.

    Files are those of ``read_records``, whose rows have one of ``PROMPT_FORMS``; and ``.txt``, each line a prompt.

    Raises:
        DataError: the file cannot be read, or the form of its rows is unknown.
    """
    if path.suffix.lower() in TEXT_SUFFIXES:
        yield from _lines(path)
        return
    if not holds_records(path):
        with_lines = ", ".join(TEXT_SUFFIXES)
        raise DataError(
            f"{path}: is no file of prompts; give .jsonl, .json, .csv or .parquet, or {with_lines} of lines"
        )
    form: Form[PromptRow] | None = None
    for number, record in enumerate(read_records(path)):
        if isinstance(record, BadRecord):
            yield RowProblem("malformed", record.place, record.sentence)
            continue
        if path.suffix.lower() == ".parquet":
            record = Record(record.place, without_nulls(record.value))
        form = form or recognised(path, sampled_rows(read_records(path)), PROMPT_FORMS)
        converted = convert_row(record, form, PROMPT_FORMS)
        if isinstance(converted, RowProblem):
            yield converted
        else:
            yield replace(converted[0], row=record.value, number=number, place=record.place)


def _lines(path: Path) -> Iterator[PromptRow | RowProblem]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file):
                place = f"{path}, line {number + 1}"
                try:
                    text = line.decode("utf-8-sig" if number == 0 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    yield RowProblem("malformed", place, f"not UTF-8 at byte {error.start}; save it as UTF-8")
                    continue
                if text:
                    yield PromptRow(text=text, row={"prompt": text}, number=number, place=place)
    except OSError as error:
        raise DataError(f"{path}: cannot be read, {explain_os_error(error)}") from None
