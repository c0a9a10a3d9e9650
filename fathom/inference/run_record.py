"""Reads the record of a run directory: its recipe and the state of its steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar

from fathom.errors import CheckpointError, SpecError, shortened
from fathom.files import read_text
from fathom.spec import check
from fathom.spec.mapping import check_bounds, from_mapping
from fathom.spec.recipe import Recipe, Step
from fathom.spec.step_results import RECIPE_FILE, STATE_FILE

S = TypeVar("S")
LARGEST_RECORD = 1 << 30
"""Bytes that a file of a run may have: all answers to a task, or a line for every step of the training."""
Status = Literal["running", "interrupted", "failed", "done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepState:
    """One step's record. ``seconds`` sums all attempts; ``inputs`` is the fingerprint of its inputs."""

    status: Status
    seconds: float
    inputs: str

    def __post_init__(self) -> None:
        check.not_negative("seconds", self.seconds)


def read_json(path: Path) -> Any:
    """Read JSON; ``CheckpointError`` names a file that is missing or damaged."""
    try:
        return json.loads(read_text(path, LARGEST_RECORD))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; give the directory of a Fathom run") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); begin again with --restart") from None


@contextmanager
def as_written(path: Path) -> Iterator[None]:
    """Within it, what was read from ``path`` is taken apart: another shape is a ``CheckpointError``, not a crash."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        why = shortened(f"{type(error).__name__}: {error}")
        raise CheckpointError(f"{path}: is not what a step of a run writes ({why}); --restart the run") from error


def read_state(directory: Path) -> dict[str, StepState]:
    """Return the steps recorded in a run directory; empty where no run has begun."""
    path = directory / STATE_FILE
    if not path.exists():
        return {}
    try:
        states = {name: from_mapping(StepState, entry) for name, entry in read_json(path)["steps"].items()}
        for name in states:
            check.plain_name("steps", name)
    except (KeyError, TypeError, AttributeError, SpecError) as error:
        raise CheckpointError(
            f"{path}: is not the state of a Fathom run ({shortened(str(error))}); give another --out"
        ) from None
    return states


def read_recipe(directory: Path) -> Recipe:
    """Return the recipe a run directory was made with."""
    document = read_json(directory / RECIPE_FILE)
    try:
        check_bounds(document["recipe"])
        return from_mapping(Recipe, document["recipe"])
    except (KeyError, TypeError, SpecError) as error:
        raise CheckpointError(
            f"{directory / RECIPE_FILE}: cannot be used ({shortened(str(error))}); --restart the run"
        ) from None


def last_before(recipe: Recipe, step: Step, kind: type[S] | UnionType) -> Any:
    """Return the last step of a kind, or of one of several, that the recipe runs before ``step``, or None."""
    found = None
    for other in recipe.steps:
        if other.name == step.name:
            break
        if isinstance(other, kind):
            found = other
    return found
