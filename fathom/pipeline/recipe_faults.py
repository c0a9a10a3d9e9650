"""What is wrong with a recipe beyond its fields, before anything of it runs: data, packages, functions, models."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterator
from pathlib import Path

from fathom.errors import CheckpointError, FathomError, ResourceError, SpecError
from fathom.extras import install_extra
from fathom.pipeline.context import RunPlan
from fathom.pipeline.data_checks import data_faults
from fathom.pipeline.forecast.models import local_source
from fathom.pipeline.trust import Trust, code_folders, judging_steps
from fathom.posttrain.rewards.judge import Judge
from fathom.spec.data import FolderSource
from fathom.spec.problem import GymProblems
from fathom.spec.recipe import CorpusStep, OpenStep, Step
from fathom.spec.rewards import FunctionReward


def recipe_faults(plan: RunPlan, done: Collection[str], trust: Trust, cache_dir: Path) -> Iterator[FathomError]:
    """Yield everything that steps which are not done cannot work with, each located at its step.

    Functions are imported, in processes of their own, only where ``trust`` says so.
    """
    yield from data_faults(plan, done)
    for step in plan.recipe.steps:
        if step.name not in done:
            yield from _text_faults(plan, step)
            yield from _package_faults(step)
            yield from _model_faults(plan, step, cache_dir)
    yield from _function_faults(plan, done, trust)


def _text_faults(plan: RunPlan, step: Step) -> Iterator[FathomError]:
    for source in plan.manifests[step.name].sources if isinstance(step, CorpusStep) else ():
        if isinstance(source, FolderSource) and not Path(source.path).exists():
            problem = f"{source.path} of source {source.name!r} does not exist"
            yield SpecError(f"steps.{step.name}", problem, "correct its path, or give --text FOLDER")


def _package_faults(step: Step) -> Iterator[FathomError]:
    problems = getattr(step, "problems", ()) or [getattr(data, "problems", None) for data in getattr(step, "data", ())]
    gym = [source for source in problems if isinstance(source, GymProblems)]
    if gym and importlib.util.find_spec("reasoning_gym") is None:
        where = f"steps.{step.name}.problems"
        yield SpecError(where, f"{gym[0].dataset!r} needs reasoning-gym", install_extra("rl"))


def _model_faults(plan: RunPlan, step: Step, cache_dir: Path) -> Iterator[FathomError]:
    if not isinstance(step, OpenStep):
        return
    try:
        local_source(plan.base, step.model, cache_dir)
    except (CheckpointError, SpecError) as error:
        yield CheckpointError(f"steps.{step.name}.model: {error}")


def _function_faults(plan: RunPlan, done: Collection[str], trust: Trust) -> Iterator[FathomError]:
    if not trust.code:
        return
    for step, rewards in judging_steps(plan.recipe, done):
        for reward in rewards:
            if not isinstance(reward, FunctionReward):
                continue
            try:
                with Judge([reward], code_folders=code_folders(plan.base)) as judge:
                    judge.start()
            except ResourceError as error:
                yield SpecError(
                    f"steps.{step.name}.rewards.{reward.name}",
                    str(error).removeprefix(f"reward {reward.name}: "),
                    f"correct it, or put its module beside the recipe, in {plan.base}",
                )
