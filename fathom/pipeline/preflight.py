"""What a run says of its training steps before the first of them begins: hours may pass until then."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fathom.inference.conversion_warnings import export_faults
from fathom.pipeline.context import RunPlan, spec_during
from fathom.spec.recipe import DistillStep, GrpoStep, Recipe, TrainStep
from fathom.train.preflight import warmup_warning
from fathom.train.schedule import total_steps


def export_notes(recipe: Recipe) -> Iterator[str]:
    """Yield a line for each form that the model which a recipe builds cannot be exported to."""
    built = [step for step in recipe.steps if isinstance(step, TrainStep)]
    model = spec_during(recipe, built[-1]) if built else None
    for form, reason in (export_faults(model) if model is not None else {}).items():
        yield f"the model cannot be exported with --to {form}: {reason}"


def schedule_warnings(plan: RunPlan, done: Collection[str]) -> Iterator[str]:
    """Yield what is to be said of the schedules of steps that are not done, where the recipe alone tells their length.

    Raises:
        SpecError: a schedule never comes near its rate.
    """
    for step in plan.recipe.steps:
        if step.name in done:
            continue
        if isinstance(step, TrainStep):
            found = warmup_warning(f"{step.name}.train", step.train, total_steps(step.train))
        elif isinstance(step, GrpoStep | DistillStep):
            found = warmup_warning(f"{step.name}.policy", step.policy, step.policy.rollouts)
        else:
            continue
        if found is not None:
            yield found
