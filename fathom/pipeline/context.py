"""What a step is given, and where in the run directory the steps leave their results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args

from fathom.errors import SpecError
from fathom.inference.run_record import last_before
from fathom.model.decoder import Decoder
from fathom.parallel.processes import Processes
from fathom.pipeline.trust import NO_TRUST, Trust
from fathom.progress import Progress
from fathom.spec.data import Manifest
from fathom.spec.mapping import to_mapping
from fathom.spec.model import ModelSpec
from fathom.spec.recipe import (
    DistillStep,
    DpoStep,
    LearningStep,
    ModelStep,
    OpenStep,
    Recipe,
    RepliesStep,
    SftStep,
    StartingStep,
    Step,
    TasksStep,
    TokenizerStep,
    TrainStep,
)
from fathom.spec.step_results import result_name
from fathom.train.group import ALONE, Group
from fathom.train.trackers import Tracking

S = TypeVar("S")
TokenizerSource = TokenizerStep | OpenStep
"""A step that leaves a tokenizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """A recipe with its sources: everything a run needs to know.

    ``manifests`` is by corpus step name; ``base`` is the recipe's folder, which its paths start from. ``defaults`` are
    the fields that the recipe leaves out to other parts of it and the model's family, as path and TOML value.
    """

    recipe: Recipe
    manifests: Mapping[str, Manifest]
    base: Path = Path()
    defaults: tuple[tuple[str, str], ...] = ()

    def data_path(self, path: str) -> Path:
        """Return where a recipe's data file is: from ``base`` unless absolute, ``~`` being the user's folder."""
        return self.base / Path(path).expanduser()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """One run as its steps see it. ``cache_dir`` keeps fetched sources between runs."""

    plan: RunPlan
    directory: Path
    cache_dir: Path
    device: str
    progress: Progress
    trust: Trust = NO_TRUST
    trackers: tuple[str, ...] = ()
    processes: Processes | None = None

    def group(self, model: Decoder) -> Group:
        """Return the processes that train a model together, which is sharded in place where there are several.

        Raises:
            SpecError: the recipe's ``parallel`` does not fit the model or the number of processes.
        """
        return ALONE if self.processes is None else self.processes.shard(model, self.recipe.parallel)

    @property
    def recipe(self) -> Recipe:
        """The run's recipe."""
        return self.plan.recipe

    def path(self, step: Step) -> Path:
        """Where a step leaves its result: a folder of its own name, or a file for steps that leave one."""
        return self.directory / result_name(step)

    def tracking(self, step: LearningStep) -> Tracking:
        """Return what a learning step's metrics go to, under the names of the run and the step."""
        return Tracking(names=self.trackers, run=f"{self.recipe.name}/{step.name}", settings=to_mapping(step))

    def before(self, step: Step, kind: type[S]) -> S:
        """Return the last step of a kind before ``step``; ``SpecError`` if there is none."""
        found: S | None = last_before(self.recipe, step, kind)
        if found is None:
            raise SpecError(f"steps.{step.name}", f"needs a {kind_name(kind)} step before it", "add one to the recipe")
        return found


def kind_name(kind: type | UnionType) -> str:
    """Return the word a recipe uses for a class of steps, or for any of several."""
    if isinstance(kind, UnionType):
        return " or ".join(kind_name(each) for each in get_args(kind))
    return str(getattr(kind, "kind", kind.__name__))


def model_step(recipe: Recipe, step: Step) -> ModelStep:
    """Return the step whose model ``step`` takes: the one it names, or the last before it that leaves one.

    Raises:
        SpecError: there is none.
    """
    start = step.start if isinstance(step, StartingStep) else None
    if start is not None:
        named: ModelStep = named_step(recipe, step, start, ModelStep, "start")
        return named
    found: ModelStep | None = last_before(recipe, step, ModelStep)
    if found is None:
        raise SpecError(f"steps.{step.name}", "needs a step before it that leaves a model", "add a train or open step")
    return found


def named_step(recipe: Recipe, step: Step, name: str, kinds: UnionType | type, where: str) -> Any:
    """Return the step before ``step`` that one of its fields names; ``SpecError`` if there is none of that kind."""
    earlier = recipe.steps[: [other.name for other in recipe.steps].index(step.name)]
    fitting = {other.name: other for other in earlier if isinstance(other, kinds)}
    if name not in fitting:
        known = ", ".join(fitting) or "none: add one"
        raise SpecError(f"steps.{step.name}.{where}", f"no step {name!r} before it can be taken", f"use one of {known}")
    return fitting[name]


def tuned_step(recipe: Recipe, step: RepliesStep) -> SftStep | DpoStep:
    """Return the fine-tuning before and after which a replies step asks; ``SpecError`` if there is none."""
    if step.step is not None:
        named: SftStep | DpoStep = named_step(recipe, step, step.step, SftStep | DpoStep, "step")
        return named
    found: SftStep | DpoStep | None = last_before(recipe, step, SftStep | DpoStep)
    if found is None:
        raise SpecError(f"steps.{step.name}", "needs an sft or dpo step before it", "add one to the recipe")
    return found


def base_model(recipe: Recipe) -> ModelStep | None:
    """Return the last step that left a base model, None where no step has taught a model to answer since."""
    models = [step for step in recipe.steps if isinstance(step, ModelStep)]
    if not models or isinstance(models[-1], TrainStep | OpenStep):
        return None
    return next((step for step in reversed(models) if isinstance(step, TrainStep | OpenStep)), None)


def measured_steps(recipe: Recipe, step: TasksStep) -> list[ModelStep]:
    """Return the steps whose models a tasks step measures."""
    if not step.stages:
        return [model_step(recipe, step)]
    return [named_step(recipe, step, name, ModelStep, "stages") for name in step.stages]


def taught_by(recipe: Recipe, step: DistillStep) -> ModelStep | None:
    """Return the step whose model teaches, or None where ``teacher`` is no step's name.

    Raises:
        SpecError: that step does not come before, or is the one that the student starts from.
    """
    if step.teacher not in {other.name for other in recipe.steps}:
        return None
    teacher: ModelStep = named_step(recipe, step, step.teacher, ModelStep, "teacher")
    if teacher.name == model_step(recipe, step).name:
        problem = f"{step.teacher!r} is where the student itself starts"
        raise SpecError(f"steps.{step.name}.teacher", problem, "name another teacher, or another start")
    return teacher


def train_chain(recipe: Recipe, step: Step) -> list[TrainStep]:
    """Return the train steps up to ``step``, itself included, each of which continues the one before.

    The first draws the model, or takes that of its ``start``: a step with either starts a new chain.
    """
    line: list[TrainStep] = []
    for other in recipe.steps:
        if isinstance(other, TrainStep):
            line = [*line, other] if other.model is None and other.start is None else [other]
        if other.name == step.name:
            break
    return line


def init_step(recipe: Recipe, step: Step) -> ModelStep | None:
    """Return the step whose model the train steps up to ``step`` continue, None where they draw their own.

    Raises:
        SpecError: ``start`` names no step before it that leaves a model.
    """
    first = next(iter(train_chain(recipe, step)), None)
    if first is None or first.start is None:
        return None
    found: ModelStep = named_step(recipe, first, first.start, ModelStep, "start")
    return found


def previous_model(recipe: Recipe, step: TrainStep) -> ModelStep | None:
    """Return the step whose weights a train step begins with, None where it draws its own."""
    line = train_chain(recipe, step)
    return line[-2] if len(line) > 1 else init_step(recipe, step)


def spec_during(recipe: Recipe, step: Step) -> ModelSpec | None:
    """Return the trained model as it is during ``step``; None where it is a ``start``'s, which only the run knows."""
    line = train_chain(recipe, step)
    if init_step(recipe, step) is not None:
        return None
    model = line[0].model if line else None
    return with_extended_context(recipe, step, recipe.trained_model if model is None else model)


def with_extended_context(recipe: Recipe, step: Step, model: ModelSpec) -> ModelSpec:
    """Return a model as the train steps up to ``step`` leave it: they may stretch the context."""
    for stage in train_chain(recipe, step):
        model = _extend_context(model, stage, recipe.steps.index(stage))
    return model


def _extend_context(model: ModelSpec, step: TrainStep, index: int) -> ModelSpec:
    rope = model.rope
    if step.rope_scaling is not None:
        rope = dataclasses.replace(rope, scaling=step.rope_scaling)
    context = step.max_position_embeddings or model.max_position_embeddings
    try:
        return dataclasses.replace(model, rope=rope, max_position_embeddings=context)
    except SpecError as error:
        raise error.under(f"steps[{index}]") from None
