"""Judged answers as an ``answers`` step leaves them, and the pairs they make."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fathom.data.conversations.loss_mask import Sample
from fathom.data.forms import file_records
from fathom.data.records import BadRecord, Record
from fathom.data.row_report import RowProblem, RowReport
from fathom.files import sha256
from fathom.posttrain.preferences.forms import Preference
from fathom.posttrain.preferences.pairs import PreferencePair, pair_error

AnswerPair = tuple["JudgedAnswer", "JudgedAnswer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedAnswer:
    """One answer to a problem and what it was worth; ``answer`` has special tokens spelled."""

    problem: str
    question: str
    answer: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    total: float
    place: str = ""


def read_judged(path: Path, report: RowReport) -> Iterator[JudgedAnswer]:
    """Yield the answers of a JSONL file: ``id``, ``task``, ``question``, ``answer``, both ``_ids``, and ``total``.

    A bad line is reported and left out.

    Raises:
        DataError: the file cannot be read.
    """
    for record in file_records(path):
        found = _judged(record)
        if isinstance(found, RowProblem):
            report.add(found)
        else:
            yield found


def subset_of_problems(answers: Iterable[JudgedAnswer], share: float) -> list[JudgedAnswer]:
    """Return all answers to ``share`` of the problems, rounded up; the same ones however the answers are ordered."""
    given = list(answers)
    problems = {answer.problem for answer in given}
    ranked = sorted(problems, key=lambda problem: sha256(problem))
    taken = set(ranked[: math.ceil(share * len(ranked))])
    return [answer for answer in given if answer.problem in taken]


def pair_best_with_worst(answers: Iterable[JudgedAnswer], per_problem: int) -> list[AnswerPair]:
    """Return up to ``per_problem`` pairs of a better and a worse answer to each problem.

    The best goes with the worst, the next best with the next worst, as long as one is worth more than the other.
    """
    by_problem: dict[str, list[JudgedAnswer]] = {}
    for answer in answers:
        by_problem.setdefault(answer.problem, []).append(answer)
    found: list[AnswerPair] = []
    for given in by_problem.values():
        ranked = sorted(given, key=lambda answer: -answer.total)
        chosen = zip(ranked[: len(ranked) // 2], reversed(ranked), strict=False)
        found += [(better, worse) for better, worse in chosen if better.total > worse.total][:per_problem]
    return found


def pairs_from_token_ids(found: Iterable[AnswerPair], report: RowReport, *, max_tokens: int) -> list[PreferencePair]:
    """Return pairs as the tokens that were sampled, at most ``max_tokens`` + 1 a side; others are reported."""
    pairs = []
    for better, worse in found:
        written = as_preference(better, worse)
        pair = PreferencePair(
            chosen=_sample(better),
            rejected=_sample(worse),
            prompt=better.question,
            conversation=(*written.messages, written.chosen),
        )
        problem = pair_error(pair, max_tokens, better.place)
        if problem is None:
            report.used += 1
            pairs.append(pair)
        else:
            report.add(problem)
    return pairs


def as_preference(better: JudgedAnswer, worse: JudgedAnswer) -> Preference:
    """Return a pair as a question and two answers, whichever model sampled them."""
    chosen, rejected = ({"role": "assistant", "content": answer.answer} for answer in (better, worse))
    asked = {"role": "user", "content": better.question}
    return Preference(messages=(asked,), chosen=chosen, rejected=rejected, place=better.place)


def _sample(answer: JudgedAnswer) -> Sample:
    learned = [False] * len(answer.prompt_ids) + [True] * len(answer.answer_ids)
    return Sample([*answer.prompt_ids, *answer.answer_ids], learned)


def _judged(record: Record | BadRecord) -> JudgedAnswer | RowProblem:
    if isinstance(record, BadRecord):
        return RowProblem("malformed", record.place, record.sentence)
    row, place = record.value, record.place
    texts = [row.get(name) for name in ("id", "task", "question", "answer")]
    total = row.get("total")
    if not all(isinstance(text, str) for text in texts):
        return RowProblem("malformed", place, "id, task, question or answer is no text; give all four")
    if not isinstance(total, int | float) or not math.isfinite(total):
        return RowProblem("malformed", place, f"total is {total!r}; give a finite number")
    prompt_ids, answer_ids = row.get("prompt_ids"), row.get("answer_ids")
    if not _are_ids(prompt_ids) or not _are_ids(answer_ids):
        return RowProblem("malformed", place, "prompt_ids or answer_ids are no token ids; give lists of them")
    return JudgedAnswer(
        problem=f"{row['task']}/{row['id']}",
        question=row["question"],
        answer=row["answer"],
        prompt_ids=tuple(prompt_ids),  # type: ignore[arg-type]
        answer_ids=tuple(answer_ids),  # type: ignore[arg-type]
        total=float(total),
        place=place,
    )


def _are_ids(value: Sequence[Any] | None) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int and item >= 0 for item in value)
