"""What a run says of its training steps before the first of them begins: hours may pass until then."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fathom.pipeline.context import RunPlan
from fathom.spec.recipe import DistillStep, GrpoStep, TrainStep
from fathom.train.preflight import warmup_warning
from fathom.train.schedule import total_steps


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
