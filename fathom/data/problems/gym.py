"""Problems of reasoning-gym's data sets, drawn from Fathom's seeds, as plain JSON that its scorers take."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from fathom.data.problems.generated import GeneratedProblems
from fathom.data.problems.solutions import worked_solution
from fathom.data.problems.split import derived_seed
from fathom.errors import DataError, SpecError
from fathom.extras import install_extra
from fathom.spec.problem import GymProblems, Problem, Split

CHUNK = 4096
"""Problems from one object of a data set: some prepare all of theirs when they are made, or take no more."""

_KEPT_OBJECTS = 16
_NO_ANSWER = "has no reference answer"
_NOT_JSON = "is judged by values that JSON does not keep"
_NOT_REPEATABLE = "draws other problems in every process"

UNSUPPORTED_DATASETS: Mapping[str, str] = MappingProxyType(
    {
        "arc_agi": _NOT_JSON,
        "boxnet": _NO_ANSWER,
        "codeio": "runs programs of its own outside the sandbox",
        "composite": "is made of others",
        "graph_color": _NO_ANSWER,
        "intermediate_integration": _NOT_REPEATABLE,
        "isomorphic_strings": _NOT_REPEATABLE,
        "knight_swap": _NOT_REPEATABLE,
        "list_functions": "draws a problem from those drawn before it",
        "polynomial_multiplication": _NOT_REPEATABLE,
        "propositional_logic": _NO_ANSWER,
        "ransom_note": _NOT_REPEATABLE,
        "rearc": _NOT_JSON,
        "rubiks_cube": _NO_ANSWER,
        "rush_hour": _NO_ANSWER,
        "string_manipulation": "has problems whose answer is empty, which no scorer takes",
        "word_ladder": _NOT_REPEATABLE,
    }
)
"""Data sets that cannot be asked, split and judged by Fathom's rules, and why (release 0.1.25)."""


def open_gym(source: GymProblems) -> GeneratedProblems:
    """Open a data set; an unknown or refused one, and an option it does not take, raise ``SpecError``.

    Raises:
        DataError: reasoning-gym is not installed.
    """
    configuration = _configuration(source)
    options = _converted(source, configuration)
    dataset_of = lru_cache(maxsize=_KEPT_OBJECTS)(lambda seed: _made(source, options, seed))

    def draw(split: Split, seed: int, attempt: int, index: int) -> Problem:
        chunk, place = divmod(index, CHUNK)
        # some data sets take seeds of 32 bits only
        entry = dataset_of(derived_seed(source.dataset, split, seed, attempt, chunk) % 2**32)[place]
        return _problem(source, entry, f"{split}-{seed}-{attempt}-{index}")

    _made(source, options, 0)
    return GeneratedProblems(source.name, source.dataset, draw)


def _gym() -> Any:
    try:
        return importlib.import_module("reasoning_gym")
    except ImportError:
        raise DataError(
            f"reasoning-gym problems need reasoning-gym, which is not installed; {install_extra('rl')}"
        ) from None


def _configuration(source: GymProblems) -> Any:
    known: Mapping[str, Any] = _gym().factory.DATASETS
    if source.dataset not in known:
        near = difflib.get_close_matches(source.dataset, known, n=3)
        remedy = f"did you mean {' or '.join(map(repr, near))}?" if near else "use a data set of reasoning-gym"
        raise SpecError("dataset", f"there is no {source.dataset!r} in reasoning-gym", remedy)
    if source.dataset in UNSUPPORTED_DATASETS:
        raise SpecError(
            "dataset", f"{source.dataset!r} {UNSUPPORTED_DATASETS[source.dataset]}", "choose another data set"
        )
    return known[source.dataset][1]


def _converted(source: GymProblems, configuration: Any) -> dict[str, Any]:
    """Check the names of options; lists become tuples where the configuration holds a tuple."""
    fields = {f.name: f for f in dataclasses.fields(configuration) if f.name not in ("seed", "size")}
    options = {}
    for name, value in source.options.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=3)
            known = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(sorted(fields))}"
            raise SpecError(f"options.{name}", f"{source.dataset} has no such option", known)
        options[name] = tuple(value) if isinstance(fields[name].default, tuple) else value
    return options


def _made(source: GymProblems, options: Mapping[str, Any], seed: int) -> Any:
    try:
        return _gym().create_dataset(source.dataset, **options, seed=seed, size=CHUNK)
    except (AssertionError, TypeError, ValueError) as error:
        why = " ".join(str(error).split()) or "out of range"
        raise SpecError("options", f"{source.dataset} refuses {dict(options)} ({why})", "correct them") from None


def _problem(source: GymProblems, entry: Mapping[str, Any], name: str) -> Problem:
    # a few hold fractions and the like, which no scorer reads
    metadata = json.loads(json.dumps(entry["metadata"], default=str, allow_nan=False))
    problem = Problem(
        id=f"{source.name}/{name}",
        task=source.name,
        question=entry["question"],
        answer=entry["answer"],
        details={"dataset": source.dataset, "metadata": metadata},
    )
    solution = worked_solution(problem)
    if solution is None:
        return problem
    return dataclasses.replace(problem, details={**problem.details, "solution": solution})
