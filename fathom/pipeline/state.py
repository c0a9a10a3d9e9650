"""The state of a run: which steps are done, how long they took, and what they were made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fathom.files import write_json
from fathom.inference.run_record import StepState, last_before
from fathom.pipeline.context import RunPlan, TokenizerSource, init_step, model_step, train_chain
from fathom.spec.mapping import to_mapping
from fathom.spec.recipe import (
    CorpusStep,
    DistillStep,
    GrpoStep,
    LearningStep,
    ModelStep,
    Recipe,
    ShardsStep,
    StartingStep,
    Step,
    TrainStep,
)
from fathom.spec.resume import FIELD_EFFECTS, Effect
from fathom.spec.step_results import RECIPE_FILE, STATE_FILE


def write_state(directory: Path, states: Mapping[str, StepState]) -> None:
    """Record the steps of a run."""
    steps = {
        name: {"status": s.status, "seconds": round(s.seconds, 3), "inputs": s.inputs} for name, s in states.items()
    }
    write_json(directory / STATE_FILE, {"steps": steps})


def write_run_plan(directory: Path, plan: RunPlan) -> None:
    """Record the recipe and sources of a run, and the folder that the recipe's paths start from."""
    base = str(plan.base.resolve())
    recorded = {} if any("\ud800" <= letter <= "\udfff" for letter in base) else {"base": base}  # JSON holds no bytes
    write_json(directory / RECIPE_FILE, run_plan_mapping(plan) | recorded)


def step_inputs(run_plan_mapping: Mapping[str, Any], recipe: Recipe, step: Step) -> dict[str, Any]:
    """Return what a step's result depends on: its own fields, its sources or model, and which steps it builds on."""
    index = [other.name for other in recipe.steps].index(step.name)
    fields = dict(run_plan_mapping["recipe"]["steps"][index])
    inputs: dict[str, Any] = {"steps": {step.name: fields}}
    if isinstance(step, CorpusStep):
        fields = {name: value for name, value in fields.items() if name not in ("manifest", "text")}
        inputs["steps"] = {step.name: fields}
        inputs["manifest"] = run_plan_mapping["manifests"][step.name]
    if isinstance(step, TrainStep):
        first = train_chain(recipe, step)[0]
        if first.start is None:
            inputs["model"] = run_plan_mapping["recipe"]["model"] if first.model is None else to_mapping(first.model)
    if isinstance(step, LearningStep):
        where, effects = training_fields(step)
        fields[where] = {name: value for name, value in fields[where].items() if effects.get(name) != "cadence"}
    upstream = [last_before(recipe, step, kind) for kind in (CorpusStep, TokenizerSource, ShardsStep)]
    upstream.append(_parent_step(recipe, step))
    inputs["builds_on"] = list(dict.fromkeys(other.name for other in upstream if other is not None))
    return inputs


def training_fields(step: LearningStep) -> tuple[str, Mapping[str, Effect]]:
    """Return the field that holds the training spec of a step, and the effects of the spec's fields."""
    where = "policy" if isinstance(step, GrpoStep | DistillStep) else "train"
    return where, FIELD_EFFECTS[type(getattr(step, where))]


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
