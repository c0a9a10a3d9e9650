"""The plan that a run directory holds, from which it can be continued without its recipe's file."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fathom.data.manifest import check_extractors
from fathom.errors import CheckpointError, SpecError, shortened
from fathom.inference.run_record import read_json, read_recipe, read_state
from fathom.pipeline.context import RunPlan
from fathom.pipeline.recipe import make_recipe, text_manifests
from fathom.spec.data import FolderSource, Manifest
from fathom.spec.mapping import check_bounds, from_mapping, to_mapping
from fathom.spec.recipe import CorpusStep
from fathom.spec.step_results import RECIPE_FILE, STATE_FILE


def resume_command(directory: Path, *options: str) -> str:
    """Return the command that continues a run with the recipe it holds."""
    return shlex.join(["fathom", "train", "--resume", "--out", str(directory), *options])


def load_recorded_plan(
    directory: Path, *, overrides: Sequence[str] = (), text: Sequence[Path] = (), text_column: str | None = None
) -> RunPlan:
    """Return the plan of a run's last call, with ``overrides`` and ``text`` as ``load_run_plan`` takes them.

    The record is read as an untrusted recipe is: it names files as data, and permits nothing.

    Raises:
        SpecError: there is no run; or what its unfinished steps read is no longer where it was.
        CheckpointError: the record cannot be used.
    """
    if not (directory / STATE_FILE).is_file() or not (directory / RECIPE_FILE).is_file():
        raise SpecError("RECIPE", f"is missing, and {directory} holds no run to take it from", "name a recipe's .toml")
    plan = read_plan(directory)
    try:
        recipe = make_recipe(to_mapping(plan.recipe), overrides) if overrides else plan.recipe
    except SpecError as error:
        raise SpecError(f"{directory / RECIPE_FILE}: {error.path}", error.problem, error.remedy) from None
    manifests = text_manifests(recipe, text, text_column) or plan.manifests
    plan = RunPlan(recipe=recipe, manifests=manifests, base=plan.base)
    _check_places(directory, plan)
    return plan


def read_plan(directory: Path) -> RunPlan:
    """Return the plan that a run records; fields under former names are read as today's."""
    path = directory / RECIPE_FILE
    recipe, document = read_recipe(directory), read_json(path)
    try:
        found = document.get("manifests", {})
        check_bounds(found)
        manifests = {name: from_mapping(Manifest, manifest) for name, manifest in found.items()}
        for name, manifest in manifests.items():
            check_extractors(manifest, f"manifests.{name}")
        missing = [step.name for step in recipe.steps if isinstance(step, CorpusStep) and step.name not in manifests]
        if missing:
            raise SpecError(f"manifests.{missing[0]}", "is missing", "every corpus step has one")
        base = _base(document.get("base", ""))
    except (AttributeError, SpecError) as error:
        raise CheckpointError(f"{path}: cannot be used ({shortened(str(error))}); --restart the run") from None
    return RunPlan(recipe=recipe, manifests=manifests, base=base)


def _base(recorded: Any) -> Path:
    """Return the folder of a run's recipe; an empty path for runs that do not record it."""
    check_bounds({"base": recorded})
    if not isinstance(recorded, str) or (recorded and not Path(recorded).is_absolute()):
        raise SpecError("base", f"{recorded!r} is no absolute path", "name the recipe's folder")
    return Path(recorded)


def _check_places(directory: Path, plan: RunPlan) -> None:
    """Require that the recipe's folder and the text of unfinished steps are still there."""
    done = {name for name, state in read_state(directory).items() if state.status == "done"}
    waiting = [step for step in plan.recipe.steps if step.name not in done]
    again = resume_command(directory).replace("train", "train RECIPE", 1)
    if waiting and not (plan.base.is_absolute() and plan.base.is_dir()):
        gone = f"the folder of its recipe, {plan.base}, is not there any more"
        problem = gone if plan.base.is_absolute() else "the run does not record the folder of its recipe"
        raise SpecError("RECIPE", problem, f"name the recipe where it is now: {again}")
    for step in waiting:
        for source in plan.manifests[step.name].sources if isinstance(step, CorpusStep) else ():
            if isinstance(source, FolderSource) and not Path(source.path).exists():
                problem = f"{source.path} of source {source.name!r} is not there any more"
                remedy = f"put it back, or name another: {resume_command(directory)} --text FOLDER"
                raise SpecError(f"steps.{step.name}", problem, remedy)
