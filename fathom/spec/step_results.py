"""The files and folders that a step of a recipe leaves in its run directory, by its kind and name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from fathom.errors import SpecError
from fathom.spec import check

STATE_FILE, RECIPE_FILE, LOCK_FILE = "state.json", "recipe.json", ".lock"
"""What a run keeps beside the results of its steps."""


class NamedStep(Protocol):
    """A step, as far as its results are called by it."""

    @property
    def kind(self) -> str:
        """The kind of the step."""

    @property
    def name(self) -> str:
        """Its name within the recipe."""


def result_name(step: NamedStep) -> str:
    """Name of the folder or file a step leaves in the run directory."""
    if step.kind in ("evaluate", "needle", "captions", "tasks", "replies"):
        return f"{step.name}.json"
    if step.kind == "sample":
        return "samples.json" if step.name == "sample" else f"{step.name}.json"
    return "report.html" if step.kind == "report" else step.name


def check_results(steps: Iterable[NamedStep]) -> None:
    """Require steps of plain names whose results have names of their own, on file systems that fold case too.

    Raises:
        SpecError: located at the step.
    """
    taken = dict.fromkeys((STATE_FILE, RECIPE_FILE, LOCK_FILE), "the run itself")
    for index, step in enumerate(steps):
        check.plain_name(f"steps[{index}].name", step.name)
        writer = "a report step" if step.kind == "report" else f"{step.kind} step {step.name!r}"
        for name in _written(step):
            other = taken.setdefault(name.casefold(), writer)
            if other != writer:
                problem = f"{step.name!r} would write {name}, which {other} writes"
                raise SpecError(f"steps[{index}].name", problem, "give the step another name")


def _written(step: NamedStep) -> tuple[str, ...]:
    if step.kind == "report":
        return "report.html", "report.json"
    return (step.name, result_name(step)) if step.kind == "tasks" else (result_name(step),)
