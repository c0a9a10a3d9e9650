"""What a data file's columns mean before a run: the forms it may be read in, its counts, and its first sample.

Rows are read by the same tables and readers as the steps of a recipe use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fathom.data.conversations.forms import CONVERSATION_FORMS, Conversation
from fathom.data.conversations.read import read_conversations
from fathom.data.folders.data_files import data_files, is_data_file
from fathom.data.folders.documents import FolderReading
from fathom.data.folders.record_texts import TEXT_COLUMNS
from fathom.data.folders.scan import is_readable, scan_folder
from fathom.data.forms import SAMPLED_ROWS, Columns, Form, Row, file_records, recognise, recognised
from fathom.data.left_out import LeftOutReport
from fathom.data.problems.files import read_file
from fathom.data.problems.forms import PROBLEM_FORMS
from fathom.data.records import Record, holds_records
from fathom.data.row_report import RowProblem, RowReport
from fathom.errors import DataError, shortened
from fathom.posttrain.preferences import PREFERENCE_FORMS, Preference, read_preferences
from fathom.spec.data import FolderSource
from fathom.spec.problem import FileProblems, Problem

Sample = Mapping[str, Any]
_MODEL_FILES = frozenset({"config.json", "params.json", "state.json", "tokenizer.json"})
_MODEL_SUFFIXES = (".gguf", ".safetensors", ".bin", ".pth")
LEARNED_ROLE = "assistant"


@dataclass(frozen=True, slots=True)
class DataKind:
    """A kind of data that a step reads: what its rows are called, the step, the forms, and the reader."""

    name: str
    step: str
    forms: Sequence[Form[Any]]
    read: Callable[[Path, Columns], tuple[RowReport, Sample | None]]


def holds_data(path: Path) -> bool:
    """Whether a path is one of data rather than of a model: by its suffix, a pattern, or what lies in a folder."""
    if path.is_dir():
        inside = [file.name.lower() for file in path.iterdir()]
        if any(name in _MODEL_FILES or name.endswith(_MODEL_SUFFIXES) for name in inside):
            return False
        return any(is_data_file(file) or is_readable(file) for file in path.rglob("*"))
    return holds_records(path) or (path.is_file() and is_readable(path))


def inspect_data(path: Path, kind: str | None = None, columns: Columns | None = None) -> dict[str, Any]:
    """Return a description of a data file or folder as plain JSON; every row is read.

    ``uses`` are the forms that its rows have, one for each kind of data, ``choices`` those that a recipe has to name.

    Raises:
        DataError: it cannot be read, or ``kind`` or ``columns`` are given and do not fit.
    """
    given = columns or Columns()
    if kind is None and given == Columns() and _is_text(path):
        return _text(path)
    kinds = [KINDS[kind]] if kind is not None else list(KINDS.values())
    counts: Counter[str] = Counter()
    rows: list[Row] = []
    total = 0
    unreadable = RowReport()
    for record in file_records(path):
        total += 1
        if not isinstance(record, Record):
            unreadable.add(RowProblem("malformed", record.place, record.sentence))
            continue
        counts.update(name for name, value in record.value.items() if value is not None)
        if len(rows) < SAMPLED_ROWS:
            rows.append(record.value)
    found: dict[str, Any] = {
        "path": str(path),
        "files": [str(file) for file in data_files(path)],
        "rows": total,
        "unreadable": unreadable.read,
        "columns": dict(counts),
        "uses": [],
        "choices": [],
    }
    for one in kinds:
        if given.format is None or any(form.name == given.format for form in one.forms):
            _describe(path, one, rows, given, counts, found)
    if not found["uses"] and not found["choices"]:
        if not rows:
            raise DataError(f"{path}: holds no row that can be read ({unreadable.first}); add some or get it again")
        _refuse_unknown(path, kinds, rows, given, counts, found)
    return found


def _is_text(path: Path) -> bool:
    """Whether a path is a file of text or code, or a folder most of whose files are."""
    if not path.is_dir():
        return path.is_file() and is_readable(path) and not holds_records(path)
    files = scan_folder(path, LeftOutReport())
    return len(files) > 2 * sum(holds_records(file.path) for file in files)


def _text(path: Path) -> dict[str, Any]:
    """Describe text as a corpus step reads it: its documents, the first of them, and what is left out."""
    reading = FolderReading(FolderSource(name="text", path=str(path)))
    count, first = 0, ""
    for document in reading:
        count, first = count + 1, first or document.text.strip()
    left_out = [line.removeprefix("left out ") for line in reading.left_out.lines()]
    return {
        "path": str(path),
        "files": [str(file.path) for file in scan_folder(path, LeftOutReport())] if path.is_dir() else [str(path)],
        "rows": count,
        "unreadable": 0,
        "columns": {},
        "uses": [_corpus_use("documents of text", count, first) | {"left_out": left_out}],
        "choices": [],
    }


def _corpus_use(
    title: str, used: int, text: str | None, columns: Mapping[str, str] | None = None, ignored: Sequence[str] = ()
) -> dict[str, Any]:
    """Return how a corpus step uses text; ``text`` is the first document's."""
    return {
        "kind": "corpus",
        "step": "corpus",
        "format": "text",
        "title": title,
        "columns": columns or {},
        "ignored": ignored,
        "used": used,
        "refused": "",
        "problems": {},
        "sample": {"text": text},
    }


def _describe(
    path: Path, kind: DataKind, rows: Sequence[Row], columns: Columns, counts: Mapping[str, int], found: dict[str, Any]
) -> None:
    """Add how one kind of data reads the file: its form and what comes of it, or the forms it has to choose from."""
    recognition = recognise(rows, kind.forms, columns) if rows else None
    if recognition is None:
        return
    form = recognition.form
    if form is None:
        found["choices"] += [
            {"kind": kind.name, "step": kind.step, "format": other.name, "means": other.advice or other.title}
            for other in recognition.choices
        ]
        return
    report, sample = (RowReport(), None) if form.refusal else kind.read(path, columns)
    meanings = _meanings(form, rows, columns)
    found["uses"].append(
        {
            "kind": kind.name,
            "step": kind.step,
            "format": form.name,
            "title": form.title,
            "columns": meanings,
            "ignored": [name for name in counts if name not in meanings],
            "used": report.used,
            "refused": form.refusal,
            "problems": {reason: [count, str(report.examples[reason][0])] for reason, count in report.problems.items()},
            "sample": sample,
        }
    )


def _meanings(form: Form[Any], rows: Sequence[Row], columns: Columns) -> dict[str, str]:
    """Return what each column of the file that a form reads means, by the file's names."""
    known = {name: column for row in rows for name, column in form.names(columns.renamed(row)).items()}
    return {columns.fields.get(name, name): column.meaning for name, column in known.items()}


def _refuse_unknown(
    path: Path,
    kinds: Sequence[DataKind],
    rows: Sequence[Row],
    columns: Columns,
    counts: Mapping[str, int],
    found: dict[str, Any],
) -> None:
    """Describe a corpus of plain text; any other file that fits no form is refused with all forms of its kind."""
    text = next((name for name in TEXT_COLUMNS if name in counts), None)
    if text is not None and len(kinds) > 1 and columns == Columns():
        first = next((row[text] for row in rows if row.get(text)), None)
        ignored = [name for name in counts if name != text]
        found["uses"].append(_corpus_use("documents", counts[text], first, {text: "a document's text"}, ignored))
        return
    if len(kinds) == 1:
        recognised(path, rows, kinds[0].forms, columns)
    known = "; ".join(f"{kind.name}: {_required(kind)}" for kind in kinds)
    names = shortened(", ".join(islice(counts, 12))) or "(none)"
    raise DataError(f"{path}: no known form in the columns {names}; known are {known}; rename columns or use --field")


def _required(kind: DataKind) -> str:
    """Return the columns that each form of a kind is recognised by."""
    return " | ".join(" + ".join(c.name for c in form.columns if c.required) for form in kind.forms)


def _conversations(path: Path, columns: Columns) -> tuple[RowReport, Sample | None]:
    report, first = RowReport(), None
    for conversation in read_conversations(path, report, columns):
        sample = _conversation(conversation)
        if not any(turn["in_loss"] for turn in sample["turns"]):
            sentence = f"no turn of {LEARNED_ROLE} can be trained on; add one, or change learn"
            report.add(RowProblem("nothing_learned", conversation.place, sentence))
            continue
        report.used += 1
        first = first or sample
    return report, first


def _conversation(conversation: Conversation) -> Sample:
    flags = conversation.learn or (None,) * len(conversation.messages)
    turns = [_turn(message, flag) for message, flag in zip(conversation.messages, flags, strict=True)]
    return {"place": conversation.place, "turns": turns, "tools": [_tool_name(tool) for tool in conversation.tools]}


def _tool_name(tool: Mapping[str, Any]) -> str:
    function = tool.get("function", tool)
    return str(function.get("name", "?")) if isinstance(function, Mapping) else "?"


def _turn(message: Mapping[str, Any], flag: bool | None) -> Sample:
    """Return a message and whether it is in the loss, where a step learns the assistant's turns."""
    return {**message, "in_loss": message["role"] == LEARNED_ROLE if flag is None else flag}


def _preferences(path: Path, columns: Columns) -> tuple[RowReport, Sample | None]:
    report, first = RowReport(), None
    for pair in read_preferences(path, report, columns):
        report.used += 1
        first = first or _pair(pair)
    return report, first


def _pair(pair: Preference) -> Sample:
    turns = [_turn(message, False) for message in pair.messages]
    return {"place": pair.place, "turns": turns, "chosen": pair.chosen, "rejected": pair.rejected}


def _problems(path: Path, columns: Columns) -> tuple[RowReport, Sample | None]:
    opened = read_file(FileProblems(name="file", path=str(path), format=columns.format, fields=columns.fields), Path())
    first = next((opened.problems(split, 0, 1)[0] for split in ("train", "held_out") if opened.size(split)), None)
    return opened.report, None if first is None else _problem(first) | {
        "train": opened.size("train"),
        "held_out": opened.size("held_out"),
    }


def _problem(problem: Problem) -> dict[str, Any]:
    return {"question": problem.question, "answer": problem.answer, "details": dict(problem.details)}


KINDS: Mapping[str, DataKind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            DataKind("conversations", "sft", CONVERSATION_FORMS, _conversations),
            DataKind("preferences", "dpo", PREFERENCE_FORMS, _preferences),
            DataKind("problems", "grpo", PROBLEM_FORMS, _problems),
        )
    }
)
