"""Checks on the order of a recipe's steps that can be made before the first one runs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType, UnionType

from fathom.errors import SpecError
from fathom.inference.run_record import last_before
from fathom.pipeline.context import (
    TokenizerSource,
    init_step,
    kind_name,
    measured_steps,
    model_step,
    named_step,
    spec_during,
    taught_by,
    tuned_step,
)
from fathom.spec.alignment import JudgedPairs, KeptAnswers
from fathom.spec.faults import Faults
from fathom.spec.recipe import (
    AnswersStep,
    CaptionsStep,
    CorpusStep,
    DistillStep,
    DpoStep,
    EvaluateStep,
    GrpoStep,
    NeedleStep,
    PicturesStep,
    Recipe,
    RepliesStep,
    RewardModelStep,
    SampleStep,
    SftStep,
    ShardsStep,
    StartingStep,
    Step,
    TasksStep,
    TokenizerStep,
    TrainStep,
)
from fathom.spec.rewards import ModelReward

NEEDS: Mapping[type[Step], tuple[type[Step] | UnionType, ...]] = MappingProxyType(
    {
        TokenizerStep: (CorpusStep,),
        ShardsStep: (CorpusStep, TokenizerSource),
        TrainStep: (CorpusStep, TokenizerSource, ShardsStep),
        EvaluateStep: (ShardsStep, TrainStep),
        NeedleStep: (ShardsStep, TrainStep),
        CaptionsStep: (PicturesStep, TrainStep),
    }
)
"""Kind of step -> the kinds that must come before it."""


def check_order(recipe: Recipe) -> None:
    """Refuse a recipe in which a step lacks what it builds on, or measures beyond the model's context.

    Raises:
        SpecError: located at the step and field.
    """
    for fault in order_faults(recipe):
        raise fault


def order_faults(recipe: Recipe) -> list[SpecError]:
    """Return what ``check_order`` refuses: the first fault of each step, a missing step once."""
    faults = Faults()
    missing: set[type[Step] | UnionType] = set()
    for index, step in enumerate(recipe.steps):
        needed = [kind for kind in NEEDS.get(type(step), ()) if last_before(recipe, step, kind) is None]
        if needed and not missing.issuperset(needed):
            problem = f"{step.name!r} needs a {kind_name(needed[0])} step before it"
            faults.found.append(SpecError(f"steps[{index}]", problem, "add one to the recipe"))
        missing.update(needed)
        if not needed:
            with faults.collect():
                _check_step(recipe, step, f"steps[{index}]")
    return faults.found


def _check_step(recipe: Recipe, step: Step, where: str) -> None:
    _check_references(recipe, step)
    if isinstance(step, TrainStep) and step.images is not None:
        _check_images(recipe, step, f"{where}.images")
    model = spec_during(recipe, step) if isinstance(step, NeedleStep | EvaluateStep) else None
    if model is None:
        return
    context = model.max_position_embeddings
    if isinstance(step, NeedleStep) and max(step.lengths) > context:
        problem = f"{max(step.lengths)} exceeds the context of {context}"
        raise SpecError(f"{where}.lengths", problem, "shorten it or stretch the context in a train step")
    if isinstance(step, EvaluateStep) and step.context is not None and not 1 <= step.context <= context:
        raise SpecError(f"{where}.context", f"{step.context} is not within 1 to {context}", "choose one that is")


def _check_references(recipe: Recipe, step: Step) -> None:
    """Refuse a step that takes the model or the answers of one that does not come before it."""
    if isinstance(step, StartingStep | SampleStep):
        model_step(recipe, step)
    if isinstance(step, TrainStep):
        init_step(recipe, step)
    if isinstance(step, TasksStep):
        measured_steps(recipe, step)
    if isinstance(step, DistillStep):
        taught_by(recipe, step)
    if isinstance(step, RepliesStep):
        tuned_step(recipe, step)
    if isinstance(step, SftStep):
        for index, data in enumerate(step.data):
            if isinstance(data, KeptAnswers):
                named_step(recipe, step, data.step, AnswersStep, f"data[{index}].step")
    if isinstance(step, DpoStep | RewardModelStep):
        for index, pairs in enumerate(step.pairs):
            if isinstance(pairs, JudgedPairs):
                named_step(recipe, step, pairs.step, AnswersStep, f"pairs[{index}].step")
    if isinstance(step, GrpoStep | AnswersStep | TasksStep):
        for index, reward in enumerate(step.rewards):
            if isinstance(reward, ModelReward):
                named_step(recipe, step, reward.step, RewardModelStep, f"rewards[{index}].step")


def _check_images(recipe: Recipe, step: TrainStep, where: str) -> None:
    assert step.images is not None
    model = spec_during(recipe, step)
    if model is not None and model.vision is None:
        raise SpecError(where, "the model sees no images", "set model.vision")
    if step.images.pairs is None and last_before(recipe, step, PicturesStep) is None:
        raise SpecError(f"{where}.pairs", "is missing", "name a JSONL file, or add a pictures step before")
