"""Which changes of its recipe a run accepts when it is resumed, and what they mean for the records of its steps."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fathom.checkpoint import store
from fathom.errors import SpecError
from fathom.files import fingerprint
from fathom.inference.run_record import StepState
from fathom.pipeline.context import RunPlan
from fathom.pipeline.recorded_plan import read_plan
from fathom.pipeline.state import run_plan_mapping, step_inputs, training_fields
from fathom.spec.recipe import LearningStep, ModelStep, Step
from fathom.spec.resume import STEP_EFFECTS, Effect, FieldChange, differences
from fathom.spec.step_results import RECIPE_FILE, result_name
from fathom.train.state import has_optimizer

NEW_RUN = "give another --out, or --restart to begin again"


def accept_changes(
    directory: Path, plan: RunPlan, states: Mapping[str, StepState], *, allow_changes: bool
) -> dict[str, StepState]:
    """Return the records of a run under ``plan``, or refuse a plan that contradicts a result.

    A step contradicts its result where one of its inputs differs that may not (``fathom.spec.resume``). A training
    step has a result once it has a checkpoint, any other once it is done. A finished training step that becomes longer
    runs again from its last checkpoint, and so do the steps after it, unless one of these has trained already.

    Raises:
        SpecError: naming the first field that may not differ, both values and the remedies.
    """
    accepted, new = dict(states), run_plan_mapping(plan)
    recorded = _recorded_plan(directory)
    for index, step in enumerate(plan.recipe.steps):
        state = states.get(step.name)
        if state is None or not _has_result(directory, step, state):
            continue
        inputs = step_inputs(new, plan.recipe, step)
        if fingerprint(inputs) == state.inputs:
            continue
        changes = _changes(step, recorded, inputs)
        later = [other for other in plan.recipe.steps[index + 1 :] if other.name in states]
        for change in changes:
            remedy = _refusal(directory, step, change, state, later, states, allow_changes=allow_changes)
            if remedy is not None:
                old, now = _text(change.old), _text(change.new)
                problem = f"was {old} when step {step.name!r} of {directory} began and is now {now}"
                raise SpecError(change.field, problem, remedy)
        accepted[step.name] = dataclasses.replace(accepted[step.name], inputs=fingerprint(inputs))
        if state.status == "done" and any(change.effect == "growth" for change in changes):
            for other in (step, *later):
                accepted[other.name] = dataclasses.replace(accepted[other.name], status="interrupted")
    return accepted


def _has_result(directory: Path, step: Step, state: StepState) -> bool:
    trained = (
        isinstance(step, LearningStep) and store.latest(directory / result_name(step) / store.CHECKPOINTS) is not None
    )
    return trained or state.status == "done"


def _recorded_plan(directory: Path) -> RunPlan | None:
    """Return the plan of the run's last call; fields under former names are read as today's."""
    if not (directory / RECIPE_FILE).exists():
        return None
    return read_plan(directory)


def _changes(step: Step, recorded: RunPlan | None, inputs: Mapping[str, Any]) -> list[FieldChange]:
    """Return what differs between the inputs of a step as they were recorded and as they are."""
    if recorded is None:
        return [FieldChange(field="recipe", old="another recipe", new="this one", effect="fixed")]
    former = next((other for other in recorded.recipe.steps if other.name == step.name), None)
    before = {} if former is None else step_inputs(run_plan_mapping(recorded), recorded.recipe, former)
    effects: dict[str, Effect] = {}
    if isinstance(step, LearningStep):
        where, fields = training_fields(step)
        base = f"steps.{step.name}"
        effects = {f"{base}.{name}": effect for name, effect in STEP_EFFECTS.items()}
        effects |= {f"{base}.{where}.{name}": effect for name, effect in fields.items()}
    return differences(effects, before, inputs)


def _refusal(
    directory: Path,
    step: Step,
    change: FieldChange,
    state: StepState,
    later: Sequence[Step],
    states: Mapping[str, StepState],
    *,
    allow_changes: bool,
) -> str | None:
    """Return the remedies for a change that is not accepted, None for one that is."""
    if change.effect in ("cadence", "rounding"):
        return None
    if change.effect == "growth":
        built = [other for other in later if isinstance(other, LearningStep)]
        built = [other for other in built if _has_result(directory, other, states[other.name])]
        if state.status == "done" and built:
            return f"step {built[0].name!r} has trained since: {NEW_RUN}"
        return None if _can_go_on(directory, step) else _without_optimizer(step)
    if change.effect == "fixed" or state.status == "done":
        return NEW_RUN
    return None if allow_changes else f"add --allow-changes to continue with it, {NEW_RUN}"


def _can_go_on(directory: Path, step: Step) -> bool:
    """Whether a training step's last checkpoint has what more training needs."""
    last = store.latest(directory / result_name(step) / store.CHECKPOINTS)
    return last is None or has_optimizer(store.Checkpoint.open(last, verify=False))


def _without_optimizer(step: Step) -> str:
    """Return the remedies where a finished step is to become longer and its optimizer's state is gone."""
    assert isinstance(step, LearningStep)
    where, _ = training_fields(step)
    problem = "its optimizer's state was dropped when it was done"
    kept = f"in a new run, set {where}.checkpoint.keep_optimizer = true to be able to make it longer"
    if not isinstance(step, ModelStep):
        return f"{problem}: {kept}"
    return f'{problem}: train its model further in a step of its own, with start = "{step.name}"; {kept}'


def _text(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)
