"""A user's own questions as a task: multiple choice, or questions with an answer, from files of any known form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fathom.data.forms import (
    Column,
    Form,
    Recognition,
    Row,
    file_records,
    optional,
    read_rows,
    recognise,
    sampled_rows,
    unknown_columns,
)
from fathom.data.problems.files import open_file
from fathom.data.problems.forms import PROBLEM_FORMS
from fathom.data.row_report import RowReport, UnusableRow
from fathom.errors import DataError, FathomError
from fathom.evals.task_cases import ChoiceCase, ProblemCase, Task
from fathom.spec.problem import FileProblems, Split

QUESTION = "Question: {question}\nAnswer:"
_LETTERS = "ABCDEFGHIJ"
_RENAME = "rename the columns, e.g. to question and answer, or question, choices and answer"
_ID = optional("id", "the question's name", "unique_id", "question_id", "ind")
_GOLD = ("answerKey", "answer_index", "answer_idx", "label", "gold", "gold_index", "expected_index", "target")


@dataclass(frozen=True, slots=True)
class OwnCases:
    """A task with its cases, and what became of the rows."""

    task: Task
    cases: Sequence[ChoiceCase] | Sequence[ProblemCase]
    report: RowReport


def _case(row: Row, context: str, choices: Any) -> ChoiceCase:
    labels: list[str] = []
    if isinstance(choices, Mapping):  # ARC, CommonsenseQA
        labels, choices = [str(label) for label in choices.get("label", ())], choices.get("text")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise UnusableRow('choices: are no list of two texts or more; write them as ["...", "..."]')
    answer = gold_index(row["answer"], choices, labels)
    return ChoiceCase(str(row.get("id", "")), context, tuple(choice.strip() for choice in choices), answer)


def gold_index(answer: Any, choices: Sequence[str], labels: Sequence[str] = ()) -> int:
    """Return the index that an answer means: a label, a choice's text, a letter, or an index from 0."""
    if isinstance(answer, str):
        text = answer.strip()
        if text in labels:
            return labels.index(text)
        stripped = [choice.strip() for choice in choices]
        if text in stripped:
            return stripped.index(text)
        if len(text) == 1 and text.upper() in _LETTERS[: len(choices)]:
            return _LETTERS.index(text.upper())
        answer = int(text) if text.isascii() and text.isdigit() else text
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    raise UnusableRow(
        f"answer: {answer!r:.40} is none of {len(choices)} choices; give an index from 0, a letter or a text"
    )


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UnusableRow(f"{where}: is no text; give one")
    return value.strip()


def _choices(row: Row, rest: Row) -> ChoiceCase:
    return _case(row, QUESTION.format(question=_text(row["question"], "question")), row["choices"])


def _letters(row: Row, rest: Row) -> ChoiceCase:
    choices = [str(row[letter]) for letter in _LETTERS[:5] if letter in row]
    return _case(row, QUESTION.format(question=_text(row["question"], "question")), choices)


def _endings(row: Row, rest: Row) -> ChoiceCase:
    return _case(row, _text(row["ctx"], "ctx"), row["endings"])


CHOICE_FORMS: tuple[Form[ChoiceCase], ...] = (
    Form(
        name="choices",
        title="multiple choice (MMLU, ARC)",
        columns=(
            Column("question", "what is asked", ("question_stem", "query", "prompt")),
            Column("choices", "the choices, a list, or texts with labels", ("options",)),
            Column("answer", "the right one: an index from 0, a letter, a label or its text", _GOLD),
            _ID,
        ),
        convert=_choices,
    ),
    Form(
        name="letters",
        title="multiple choice with a column for each letter (C-Eval, CMMLU)",
        columns=(
            Column("question", "what is asked"),
            *(Column(letter, "a choice") for letter in "AB"),
            *(optional(letter, "a choice") for letter in "CDE"),
            Column("answer", "the letter of the right one", _GOLD),
            _ID,
        ),
        convert=_letters,
    ),
    Form(
        name="endings",
        title="texts with endings (HellaSwag)",
        columns=(
            Column("ctx", "the text", ("context",)),
            Column("endings", "how it may end, a list"),
            Column("answer", "the right one: an index from 0", _GOLD),
            _ID,
        ),
        convert=_endings,
    ),
)


def read_own_cases(path: Path, split: Split | None = None) -> OwnCases:
    """Read a file or folder of questions, all of it or one split of it.

    Rows have one of ``CHOICE_FORMS``, or one of ``PROBLEM_FORMS``.

    Raises:
        DataError: it cannot be read, its form is unknown, no row can be used, or multiple choice is to be split.
    """
    if not path.exists():
        raise DataError(f"--problems {path}: there is no such file; check the path")
    head = sampled_rows(file_records(path))
    if recognise(head, CHOICE_FORMS).form is None:
        if head and recognise(head, PROBLEM_FORMS) == Recognition(None):
            unknown = unknown_columns(head, [*CHOICE_FORMS, *PROBLEM_FORMS], remedy=_RENAME)
            raise DataError(f"--problems {path}: {unknown}")
        return _questions(path, split)
    if split is not None:
        raise DataError(f"--split: {path} is multiple choice, which is used whole; leave it out")
    report, cases = RowReport(), []
    for number, (_, case) in enumerate(read_rows(path, CHOICE_FORMS, report), start=1):
        report.used += 1
        cases.append(ChoiceCase(case.id or str(number), case.context, case.choices, case.answer))
    if not cases:
        raise DataError(f"--problems {path}: no question can be used ({report.first}); correct the file")
    return OwnCases(_task(path.stem, "choices", path), _with_different_ids(cases), report)


def _questions(path: Path, split: Split | None) -> OwnCases:
    try:
        source = FileProblems(path=str(path))
        opened = open_file(source, Path())
    except FathomError as error:
        raise DataError(f"--problems {error}") from None
    splits: tuple[Split, ...] = ("train", "held_out") if split is None else (split,)
    problems = [each for name in splits if (n := opened.size(name)) for each in opened.problems(name, 0, n)]
    if not problems:
        raise DataError(f"--split: no question of {path} is {split}; leave it out, or name the other one")
    cases = [ProblemCase(problem.id, problem.question, problem.answer) for problem in problems]
    return OwnCases(_task(source.name, "word_problems", path), _with_different_ids(cases), opened.report)


def _task(name: str, form: Literal["word_problems", "choices"], path: Path) -> Task:
    return Task(
        name=name, form=form, member="", licence="your own", source=str(path), prompt=QUESTION, judge="stated_answer"
    )


def _with_different_ids(cases: Sequence[Any]) -> list[Any]:
    """Return cases whose names differ, so that what is answered can be told apart."""
    if len({case.id for case in cases}) == len(cases):
        return list(cases)
    return [replace(case, id=str(number)) for number, case in enumerate(cases, start=1)]
