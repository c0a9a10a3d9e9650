"""Worked problems as documents to pretrain on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, islice, zip_longest
from pathlib import Path
from random import Random

from fathom.data.document import Document
from fathom.data.problems import open_problems
from fathom.spec.data import ExerciseSource
from fathom.spec.problem import Problem

_PLACE = re.compile(r"\{(question|solution|answer)\}")


def read_problem_documents(source: ExerciseSource, cache_dir: Path | None) -> Iterator[Document]:
    """Yield pages of problems, sources in turn; errors as in ``open_problems``."""
    each = -(-source.count // len(source.problems))
    drawn = [
        open_problems(problems, cache_dir=cache_dir).problems("train", 0, each, seed=source.seed)
        for problems in source.problems
    ]
    turns = chain.from_iterable(zip_longest(*drawn))
    problems = [problem for problem in turns if problem is not None][: source.count]
    solved = any("{solution}" in text for text in source.texts)
    rest = (problem for problem in problems if not solved or "solution" in problem.details)
    generator = Random(source.seed)
    while page := list(islice(rest, generator.randint(1, source.problems_per_document))):
        text = generator.choice(source.texts)
        yield Document("\n\n".join(_text(text, problem) for problem in page), source.name, page[0].id)


def _text(template: str, problem: Problem) -> str:
    parts = {"question": problem.question, "solution": problem.details.get("solution", ""), "answer": problem.answer}
    return _PLACE.sub(lambda place: parts[place[1]].strip(), template)
