"""What ``fathom evaluate`` is asked: tasks, cases, and the files to write; checked before a model is opened."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fathom.cli import options
from fathom.errors import Interrupted, SpecError
from fathom.files import json_text, write_text
from fathom.locale import tr
from fathom.spec import check

if TYPE_CHECKING:
    from fathom.evals.comparison import Cell
    from fathom.inference.comparison import Wanted
    from fathom.inference.journal import Journal
    from fathom.inference.task_runs import TaskResult
    from fathom.spec.problem import Split

Models = Annotated[
    list[str],
    typer.Argument(help="One model or several, named as for other verbs; differences are to the first."),
]
Text = Annotated[
    list[Path] | None,
    typer.Option("--text", help="Measure this folder or file instead of the run's held-out text."),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", help="gsm8k, hellaswag, truthfulqa_mc1, gsm_symbolic or gsm_symbolic_zh; may be repeated."),
]
Problems = Annotated[
    list[Path] | None,
    typer.Option(
        "--problems",
        help="Your own multiple choice (question, choices, answer) or questions (question, answer); may be repeated.",
    ),
]
SplitName = Annotated[
    str | None, typer.Option("--split", help="Only train or held_out of --problems; all if left out.")
]
Cases = Annotated[str | None, typer.Option("--cases", help="Cases of each task, or all; all there are if left out.")]
Limit = Annotated[int | None, typer.Option("--limit", help="The same as --cases.")]
Outs = Annotated[
    list[Path] | None,
    typer.Option(
        "--out",
        help="Write the table (.md, .csv, .json) or every prompt, answer and verdict (.jsonl); may be repeated. "
        "Interrupted, the same command goes on where it was.",
    ),
]
TABLES = (".md", ".csv", ".json")
ANSWERS = ".jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Tasks and files of questions, how many cases of each (None: as many as there are), and files to write."""

    names: Sequence[str]
    problems: Sequence[Path]
    split: Split | None
    count: int | None
    every: bool
    out: Sequence[Path]
    apply_chat_template: bool | None = None

    @property
    def tasks(self) -> bool:
        """Whether any task is asked."""
        return bool(self.names or self.problems)

    def open(self, models: Sequence[str]) -> list[Wanted]:
        """Read the cases, fetching packages the first time; rows that are left out are named on stderr.

        Models are those that are to be asked as a chat, if so it is asked: each must have a template.
        """
        from fathom.inference.comparison import check_chat_templates, open_own, open_task

        cache = options.cache_directory()
        wanted = []
        for path in self.problems:
            found, own = open_own(path, self.split, self.count)
            for line in own.report.lines("questions") if own.report.problems else ():
                print(f"{path}: {line}", file=sys.stderr)
            wanted.append(found)
        wanted += [open_task(name, self.count, cache, every=self.every) for name in self.names]
        check.distinct_names("--problems", [each.task.name for each in wanted], what="file of questions")
        if self.apply_chat_template:
            check_chat_templates(models, wanted, cache)
        return wanted

    @contextmanager
    def journal(
        self, models: Sequence[str], wanted: Sequence[Wanted], given: Sequence[str]
    ) -> Iterator[Journal | None]:
        """Open the journal beside the first file to write; None where there is none."""
        from fathom.inference.journal import open_journal

        if not self.out:
            yield None
            return
        work = {
            "models": list(models),
            "tasks": {each.task.name: each.fingerprint() for each in wanted},
            "options": [*given, self.apply_chat_template],
        }
        with open_journal(self.out[0], work) as journal:
            yield journal

    def write(
        self, cells: Sequence[Cell], results: Mapping[str, Sequence[TaskResult]], journal: Journal | None
    ) -> None:
        """Write the files, and remove the journal."""
        from fathom.evals.comparison import comma_separated, markdown

        for path in self.out:
            suffix = path.suffix.lower()
            if suffix == ANSWERS:
                write_text(path, "".join(_lines(results)))
            elif suffix == ".json":
                write_text(path, json_text([cell.row() for cell in cells]))
            else:
                write_text(path, markdown(cells) if suffix == ".md" else comma_separated(cells))
        if journal is not None:
            journal.remove()


def interruption(out: Sequence[Path]) -> Interrupted:
    """Return the error that says what an interruption leaves."""
    if out:
        return Interrupted(tr("SIGINT arrived; finished answers are kept, and the same command goes on with the rest"))
    return Interrupted(tr("SIGINT arrived; nothing is kept without --out FILE"))


def asked(
    task: list[str] | None,
    problems: list[Path] | None,
    split: str | None,
    cases: str | None,
    limit: int | None,
    out: list[Path] | None,
    table: bool,
    apply_chat_template: bool | None,
) -> Asked:
    """Check what is asked, as far as nothing has to be fetched for it."""
    from fathom.inference.comparison import check_task
    from fathom.inference.journal import check_absent

    names = list(dict.fromkeys(task or []))
    for name in names:
        check_task(name)
    given = {
        "--limit": limit is not None,
        "--cases": cases is not None,
        "--out": bool(out),
        "--markdown or --csv": table,
        "--apply-chat-template": apply_chat_template is not None,
    }
    if not names and not problems:
        for option in (option for option, there in given.items() if there):
            raise SpecError(option, "is about tasks", "name one with --task")
    if split is not None:
        if not problems:
            raise SpecError("--split", "is about --problems", "give --problems FILE, or leave it out")
        check.one_of("--split", split, ("train", "held_out"))
    for path in out or ():
        if path.suffix.lower() not in (*TABLES, ANSWERS):
            raise SpecError("--out", f"{path} has no known ending", "end it with .md, .csv, .json or .jsonl")
        check_absent(path)
    return Asked(
        names=names,
        problems=problems or (),
        split=cast("Split | None", split),
        count=_count(cases, limit),
        every=cases == "all",
        out=out or (),
        apply_chat_template=apply_chat_template,
    )


def _count(cases: str | None, limit: int | None) -> int | None:
    if limit is not None and limit < 1:
        raise SpecError("--limit", f"{limit} cases", "give at least 1")
    if cases is None or cases == "all":
        return limit
    if not (cases.isascii() and cases.isdigit()) or int(cases) < 1:
        raise SpecError("--cases", f"{cases!r} is no number of cases", "give 1 or more, or all")
    return int(cases)


def check_text(text: list[Path] | None, text_column: str | None) -> None:
    """Refuse a column of text where there are no data files."""
    if text_column is not None and not text:
        raise SpecError("--text-column", "is about the data files of --text", "give --text FOLDER, or leave it out")


def _lines(results: Mapping[str, Sequence[TaskResult]]) -> Iterator[str]:
    several = len(results) > 1
    for name, found in results.items():
        for record in (record for result in found for record in result.records):
            row: dict[str, Any] = {"model": name, **record} if several else dict(record)
            yield json.dumps(row, ensure_ascii=False) + "\n"
