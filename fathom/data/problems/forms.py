"""The forms of problems, as the rows of published data sets have them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fathom.data.folders.split_names import HELD_OUT_SPLITS
from fathom.data.forms import Column, Form, Row, optional
from fathom.data.problems.gold import Gold, gold_answer, solved_answer, written
from fathom.data.row_report import UnusableRow

MAX_COLUMN_CHARS = 16_384
"""A further column whose JSON is longer is left out of a problem's details."""
_JUDGED_BY = frozenset({"dataset", "metadata", "prompt", "tests", "entry_point", "canonical_solution", "solution"})
"""Details that say how answers are judged: a column of the same name is carried as ``column_NAME``."""
_CHOICES = ("choices", "options")
_SOLUTIONS = ("generated_solution",)

_ID = optional("id", "the problem's name", "unique_id", "uuid", "problem_id", "question_id")
_LANGUAGE = optional("language", "en or zh")
_ANSWERS = ("final_answer", "ground_truth", "expected_answer", "reference_answer", "final_ans")
_CONTEXT = optional("context", "what the question is about, before it", "body", "passage")
_NO_ANSWERS = frozenset({"proof", "notfound", "n/a", "nan"})
"""What NuminaMath and tables of pandas write where there is no final value."""
_SURROGATE = re.compile("[\\ud800-\\udfff]")
_MAX_WORDS = 40
_WORD = re.compile(r"[^\W\d_]{2,}|[\u4e00-\u9fff]")
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
        if not value.isascii() and _SURROGATE.search(value):
            raise UnusableRow(f"{where}: has half of a surrogate pair, which no text can; write the whole character")
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


def _question(row: Row, rest: Row) -> str:
    """Return a question with its context before it; one with choices is refused."""
    for name in _CHOICES:
        if name in rest:
            raise UnusableRow(f"{name}: multiple choice is no problem with a final value; write choices and answer out")
    question, context = _text(row["question"], "question"), row.get("context")
    return f"{context}\n{question}" if isinstance(context, str) and context.strip() else question


def _question_answer(row: Row, rest: Row) -> ProblemRow:
    question = _question(row, rest)
    return _problem(row, rest, question, _final(row["answer"], "answer"), row.get("solution"))


def _free_answer(row: Row, rest: Row) -> ProblemRow:
    """A question whose whole answer is what others are compared with, whatever it marks."""
    return _problem(row, rest, _question(row, rest), Gold(_text(row["answer"], "answer")))


def _final(value: Any, where: str) -> Gold:
    """Return the final value of an answer; a text of many words that marks none, or says there is none, is refused."""
    gold = gold_answer(value, where)
    if gold.answer.strip().lower() in _NO_ANSWERS:
        raise UnusableRow(f"{where}: {gold.answer!r} is no final value; give one, or remove the row")
    words = len(_WORD.findall(gold.answer))
    if words > _MAX_WORDS:
        raise UnusableRow(
            f"{where}: a text of {words} words, of which #### or \\boxed{{}} marks no final value; mark it, or set "
            'format = "free_answer" to compare whole answers'
        )
    return gold


def _is_final(values: Row) -> bool:
    """Whether an answer is a value rather than a text of many words, so far as can be seen."""
    try:
        return len(_WORD.findall(gold_answer(values["answer"], "answer").answer)) <= _MAX_WORDS
    except UnusableRow:
        return True


def _solved(row: Row, rest: Row, question: str) -> ProblemRow:
    """A problem with an answer, a solution, or both, of which the answer is what counts."""
    solution, answer = row.get("solution"), row.get("answer")
    if answer is not None and answer != "":
        return _problem(row, rest, question, _final(answer, "answer"), solution)
    if solution is None or solution == "":
        raise UnusableRow("has no text in 'answer'; add an answer, or a solution that marks it with #### or \\boxed{}")
    return _problem(row, rest, question, solved_answer(solution, "solution"))


def _math(row: Row, rest: Row) -> ProblemRow:
    return _solved(row, rest, _question({**row, "question": row["problem"]}, rest))


def _messages(row: Row, rest: Row) -> ProblemRow:
    return _solved(row, rest, _text(row["messages"], "messages"))


def _prompt(row: Row, rest: Row) -> ProblemRow:
    return _solved(row, rest, _text(row["prompt"], "prompt"))


def _verl(row: Row, rest: Row) -> ProblemRow:
    model = row["reward_model"]
    truth = model.get("ground_truth") if isinstance(model, Mapping) else None
    more = rest.get("extra_info")
    named = more.get("split") if isinstance(more, Mapping) and "split" not in row else None
    given = {**row, "split": named} if named in HELD_OUT_SPLITS else row
    return _problem(given, rest, _text(row["prompt"], "prompt"), _final(truth, "reward_model.ground_truth"))


def _has_answer(values: Row) -> bool:
    return ("answer" in values and _is_final(values)) or "solution" in values


def _asks(values: Row) -> bool:
    """Whether messages end with a question rather than an answer of the assistant."""
    turns = values["messages"]
    roles = [turn.get("role") for turn in turns if isinstance(turn, Mapping)] if isinstance(turns, list) else []
    return bool(roles) and "assistant" not in roles


PROBLEM_FORMS: tuple[Form[ProblemRow], ...] = (
    Form(
        name="question_answer",
        title="questions and answers (GSM8K)",
        columns=(
            Column("question", "what is asked"),
            Column("answer", "the final value, alone or after #### at the end of a solution", _ANSWERS),
            _CONTEXT,
            optional("solution", "the worked solution"),
            optional("details", "what rewards may read"),
            *_SHARED,
        ),
        convert=_question_answer,
        shape=_is_final,
        over=("math", "messages"),
    ),
    Form(
        name="free_answer",
        title="questions and answers in words",
        columns=(
            Column("question", "what is asked", ("problem", "prompt")),
            Column("answer", "the whole answer", _ANSWERS),
            _CONTEXT,
            *_SHARED,
        ),
        convert=_free_answer,
        explicit=True,
        advice="compares whole answers, as a reward of one's own may; a final value is marked with #### or \\boxed{}",
    ),
    Form(
        name="math",
        title="problems with solutions (MATH, open-r1)",
        columns=(
            Column("problem", "what is asked", ("question",)),
            _CONTEXT,
            optional("solution", "the worked solution; has the answer in \\boxed{} where no column does", *_SOLUTIONS),
            optional("answer", "the final value", *_ANSWERS),
            *_SHARED,
        ),
        convert=_math,
        shape=_has_answer,
        over=("messages",),
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
        over=("messages",),
    ),
    Form(
        name="messages",
        title="messages that ask, with answers (Tülu 3, OpenAI)",
        columns=(
            Column("messages", "what is asked"),
            Column("answer", "the final value", _ANSWERS),
            optional("solution", "the worked solution"),
            *_SHARED,
        ),
        convert=_messages,
        shape=_asks,
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
