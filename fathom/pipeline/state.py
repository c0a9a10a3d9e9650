"""The state of a run: which steps are done, how long they took, and what they were made from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fathom.errors import SpecError
from fathom.files import fingerprint, write_json
from fathom.inference.run_record import RECIPE_FILE, STATE_FILE, StepState, last_before, read_json, read_recipe
from fathom.pipeline.context import RunPlan, TokenizerSource, init_step, model_step, train_chain
from fathom.spec.mapping import to_mapping
from fathom.spec.recipe import (
    CorpusStep,
    LearningStep,
    ModelStep,
    Recipe,
    ShardsStep,
    StartingStep,
    Step,
    TrainStep,
)

INTERVAL_FIELDS = ("checkpoint", "log_every_steps", "evaluate_every_steps")
"""Fields of a step that trains which may change between calls: they say how often, not what."""


def write_state(directory: Path, states: Mapping[str, StepState]) -> None:
    """Record the steps of a run."""
    steps = {
        name: {"status": s.status, "seconds": round(s.seconds, 3), "inputs": s.inputs} for name, s in states.items()
    }
    write_json(directory / STATE_FILE, {"steps": steps})


def write_run_plan(directory: Path, plan: RunPlan) -> None:
    """Record the recipe and sources of a run."""
    write_json(directory / RECIPE_FILE, run_plan_mapping(plan))


def step_inputs(run_plan_mapping: Mapping[str, Any], recipe: Recipe, step: Step) -> dict[str, Any]:
    """Return what a step's result depends on: its own fields, its sources or model, and which steps it builds on."""
    index = [other.name for other in recipe.steps].index(step.name)
    fields = dict(run_plan_mapping["recipe"]["steps"][index])
    inputs: dict[str, Any] = {"steps": {step.name: fields}}
    if isinstance(step, CorpusStep):
        del fields["manifest"]
        inputs["manifest"] = run_plan_mapping["manifests"][step.name]
    if isinstance(step, TrainStep):
        first = train_chain(recipe, step)[0]
        if first.start is None:
            inputs["model"] = run_plan_mapping["recipe"]["model"] if first.model is None else to_mapping(first.model)
    for learning in ("train", "policy"):
        if isinstance(step, LearningStep) and learning in fields:
            fields[learning] = {name: value for name, value in fields[learning].items() if name not in INTERVAL_FIELDS}
    upstream = [last_before(recipe, step, kind) for kind in (CorpusStep, TokenizerSource, ShardsStep)]
    upstream.append(_parent_step(recipe, step))
    inputs["builds_on"] = list(dict.fromkeys(other.name for other in upstream if other is not None))
    return inputs


def _parent_step(recipe: Recipe, step: Step) -> ModelStep | None:
    """Return the step whose model ``step`` takes, None where it draws its own or takes none."""
    if isinstance(step, StartingStep):
        return model_step(recipe, step)
    if isinstance(step, TrainStep):
        line = train_chain(recipe, step)
        return line[-2] if len(line) > 1 else init_step(recipe, step)
    found: ModelStep | None = last_before(recipe, step, ModelStep)
    return found


def run_plan_mapping(plan: RunPlan) -> dict[str, Any]:
    """Return a plan as plain values, as ``recipe.json`` holds it."""
    manifests = {name: to_mapping(manifest) for name, manifest in plan.manifests.items()}
    return {"recipe": to_mapping(plan.recipe), "manifests": manifests}


def check_unchanged(directory: Path, plan: RunPlan, states: Mapping[str, StepState]) -> None:
    """Refuse a plan under which a step that has a result would have been made differently.

    A step that trains counts from its first second, for it continues; the others count when they are done.

    Raises:
        SpecError: naming the first field that differs, both values and the remedies.
    """
    new = run_plan_mapping(plan)
    old = read_json(directory / RECIPE_FILE) if (directory / RECIPE_FILE).exists() else None
    for step in plan.recipe.steps:
        state = states.get(step.name)
        if state is None or not (state.status == "done" or isinstance(step, LearningStep)):
            continue
        inputs = step_inputs(new, plan.recipe, step)
        if fingerprint(inputs) == state.inputs:
            continue
        before = step_inputs(old, read_recipe(directory), step) if old is not None else {}
        path, was, now = _first_difference(before, inputs)
        raise SpecError(
            path,
            f"was {was} when step {step.name!r} of {directory} began and is now {now}",
            "give another --out, or --restart to begin again",
        )


def _first_difference(old: Any, new: Any) -> tuple[str, str, str]:
    flat_old, flat_new = dict(_flatten(old)), dict(_flatten(new))
    for path in [*flat_new, *flat_old]:
        was, now = flat_old.get(path, "not set"), flat_new.get(path, "not set")
        if was != now:
            return path, was, now
    return "recipe", "another recipe", "this one"


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flatten(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{path}[{index}]")
    else:
        yield path, json.dumps(value, ensure_ascii=False)
