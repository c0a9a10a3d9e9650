"""The forms of problems, as the rows of published data sets have them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fathom.data.forms import Column, Form, Row, optional
from fathom.data.problems.gold import Gold, gold_answer, solved_answer, written
from fathom.data.row_report import UnusableRow

MAX_COLUMN_CHARS = 16_384
"""A further column whose JSON is longer is left out of a problem's details."""
_JUDGED_BY = frozenset({"dataset", "metadata", "prompt", "tests", "entry_point", "canonical_solution", "solution"})
"""Details that say how answers are judged: a column of the same name is carried as ``column_NAME``."""
_CHOICES = ("choices", "options")

_ID = optional("id", "the problem's name", "unique_id", "uuid", "problem_id", "question_id")
_LANGUAGE = optional("language", "en or zh")
_ANSWERS = ("final_answer", "ground_truth")
_SPLIT = optional("split", "train or held_out (test and validation are held out)")
_SHARED = (_ID, _LANGUAGE, _SPLIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemRow:
    """A row as a problem: its question, the final answer, and what else is known; None where a column is absent."""

    question: str
    answer: str
    details: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    language: Any = None
    split: Any = None


def _problem(row: Row, rest: Row, question: str, gold: Gold, solution: Any = None) -> ProblemRow:
    given = row.get("details", {})
    if not isinstance(given, Mapping):
        raise UnusableRow(f"details: expected a table, got {given!r:.40}; write it as a table of names and values")
    details = {**_carried(rest), **given}
    worked = written(solution) if isinstance(solution, str) else gold.solution
    if worked and "solution" not in details:
        details["solution"] = worked
    return ProblemRow(
        question=question,
        answer=gold.answer,
        details=details,
        id=str(row["id"]) if "id" in row else None,
        language=row.get("language"),
        split=row.get("split"),
    )


def _carried(rest: Row) -> dict[str, Any]:
    """Return further columns as plain values for a problem's details, those that are too long left out."""
    carried = {}
    for name, value in rest.items():
        try:
            text = json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
        except (ValueError, TypeError, RecursionError):
            continue
        if len(text) <= MAX_COLUMN_CHARS:
            carried[f"column_{name}" if name in _JUDGED_BY else name] = json.loads(text)
    return carried


def _text(value: Any, where: str) -> str:
    """Return a question: a text, or the texts of messages, those of the assistant refused."""
    if isinstance(value, str) and value.strip():
        return value
    if not isinstance(value, list) or not value:
        raise UnusableRow(f"has no text in {where!r}; add it or remove the row")
    texts = []
    for index, message in enumerate(value):
        role = message.get("role", message.get("from")) if isinstance(message, Mapping) else None
        content = message.get("content", message.get("value")) if isinstance(message, Mapping) else None
        if role not in ("system", "developer", "user", "human") or not isinstance(content, str):
            raise UnusableRow(f"{where}[{index}]: is no text of the user or system; give a prompt of a single question")
        texts.append(content)
    return "\n\n".join(texts)


def _question_answer(row: Row, rest: Row) -> ProblemRow:
    for name in _CHOICES:
        if name in rest:
            raise UnusableRow(f"{name}: multiple choice is no problem with a final value; write choices and answer out")
    question = _text(row["question"], "question")
    return _problem(row, rest, question, gold_answer(row["answer"], "answer"), row.get("solution"))


def _solved(row: Row, rest: Row, question: str) -> ProblemRow:
    """A problem with an answer, a solution, or both, of which the answer is what counts."""
    solution, answer = row.get("solution"), row.get("answer")
    if answer is not None and answer != "":
        return _problem(row, rest, question, gold_answer(answer, "answer"), solution)
    if solution is None or solution == "":
        raise UnusableRow("has no text in 'answer'; add an answer, or a solution that marks it with #### or \\boxed{}")
    return _problem(row, rest, question, solved_answer(solution, "solution"))


def _math(row: Row, rest: Row) -> ProblemRow:
    return _solved(row, rest, _text(row["problem"], "problem"))


def _prompt(row: Row, rest: Row) -> ProblemRow:
    return _solved(row, rest, _text(row["prompt"], "prompt"))


def _verl(row: Row, rest: Row) -> ProblemRow:
    model = row["reward_model"]
    truth = model.get("ground_truth") if isinstance(model, Mapping) else None
    return _problem(row, rest, _text(row["prompt"], "prompt"), gold_answer(truth, "reward_model.ground_truth"))


def _has_answer(values: Row) -> bool:
    return "answer" in values or "solution" in values


PROBLEM_FORMS: tuple[Form[ProblemRow], ...] = (
    Form(
        name="question_answer",
        title="questions and answers (GSM8K)",
        columns=(
            Column("question", "what is asked"),
            Column("answer", "the final value, alone or after #### at the end of a solution", _ANSWERS),
            optional("solution", "the worked solution"),
            optional("details", "what rewards may read"),
            *_SHARED,
        ),
        convert=_question_answer,
    ),
    Form(
        name="math",
        title="problems with solutions (MATH, open-r1)",
        columns=(
            Column("problem", "what is asked"),
            optional("solution", "the worked solution; has the answer in \\boxed{} where no column does"),
            optional("answer", "the final value", *_ANSWERS),
            *_SHARED,
        ),
        convert=_math,
        shape=_has_answer,
    ),
    Form(
        name="prompt",
        title="prompts with answers (TRL, open-r1)",
        columns=(
            Column("prompt", "what is asked: a text or messages"),
            optional("answer", "the final value", *_ANSWERS),
            optional("solution", "the worked solution, or the final value where no column has it"),
            *_SHARED,
        ),
        convert=_prompt,
        shape=_has_answer,
    ),
    Form(
        name="verl",
        title="verl",
        columns=(
            Column("prompt", "what is asked, as messages"),
            Column("reward_model", "the final value, under ground_truth"),
            _ID,
            _SPLIT,
        ),
        convert=_verl,
        over=("prompt",),
    ),
)
