"""A user's own problems: a JSONL file of questions and answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from fathom.data.problems.generated import check_range
from fathom.data.problems.split import held_out
from fathom.errors import DataError, SpecError, explain_os_error
from fathom.spec.problem import FileProblems, Problem, Split

_FIELDS = ("question", "answer", "id", "language", "details", "split")
MAX_LINE_CHARS = 4_194_304


class ListedProblems:
    """A ``ProblemSet`` of listed problems, in their order; a split repeats after its last problem."""

    def __init__(self, name: str, splits: Mapping[Split, list[Problem]]) -> None:
        self.name = name
        self._splits = splits

    def problems(self, split: Split, start: int, count: int, *, seed: int = 0) -> list[Problem]:
        """Return problems of a split; a split without any raises ``DataError``."""
        check_range(start, count)
        problems = self._splits[split]
        if not problems:
            raise DataError(f'{self.name}: no problem is {split}; add some with "split": "{split}"')
        return [problems[index % len(problems)] for index in range(start, start + count)]

    def size(self, split: Split) -> int | None:
        """Return how many problems a split has."""
        return len(self._splits[split])


def open_file(source: FileProblems, base: Path) -> ListedProblems:
    """Read a file of problems, its path taken from ``base`` unless absolute.

    Each line is a table of ``question`` and ``answer``, and may have ``id``, ``language``, ``details`` and ``split``.
    Without ``split`` a question's hash decides, one in ten being held out. Every fault raises ``DataError`` with its
    line; so does one question in both splits. A question repeated within its split is read once.
    """
    path = base / Path(source.path).expanduser()
    splits: dict[Split, list[Problem]] = {"train": [], "held_out": []}
    seen: dict[str, tuple[Split, int]] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        problem, split = _read(source, line, f"{path}: line {number}", number)
        first = seen.setdefault(problem.question, (split, number))
        if first[0] != split:
            raise DataError(
                f"{path}: line {number} is {split}, but its question is {first[0]} in line {first[1]}; remove one"
            )
        if first[1] == number:
            splits[split].append(problem)
    if not seen:
        raise DataError(f"{path}: holds no problem; add lines of question and answer")
    return ListedProblems(source.name, splits)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read, {explain_os_error(error)}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None


def _read(source: FileProblems, line: str, where: str, number: int) -> tuple[Problem, Split]:
    if len(line) > MAX_LINE_CHARS:
        raise DataError(f"{where} has {len(line)} characters, above {MAX_LINE_CHARS}; shorten or remove it")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error}); fix or remove it") from None
    if not isinstance(row, dict):
        raise DataError(f'{where} is no table; write it as {{"question": ..., "answer": ...}}')
    unknown = sorted(set(row) - set(_FIELDS))
    if unknown:
        raise DataError(f"{where} has an unknown field {unknown[0]!r}; use {', '.join(_FIELDS)}")
    for name in ("question", "answer"):
        if not isinstance(row.get(name), str):
            raise DataError(f"{where} has no text in {name!r}; add it or remove the line")
    try:
        problem = _problem(source, row, number)
    except SpecError as error:
        raise DataError(f"{where}: {error}") from None
    split = row.get("split", "held_out" if held_out("problems", problem.question) else "train")
    if split not in get_args(Split):
        raise DataError(f"{where} has the split {split!r}; use {' or '.join(get_args(Split))}, or leave it out")
    return problem, split


def _problem(source: FileProblems, row: Mapping[str, Any], number: int) -> Problem:
    return Problem(
        id=str(row.get("id", f"{source.name}/{number}")),
        task=source.name,
        question=row["question"],
        answer=row["answer"],
        language=row.get("language", "en"),
        details=row.get("details", {}),
    )
