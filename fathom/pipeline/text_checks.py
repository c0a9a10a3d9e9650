"""Whether there is text enough for what a recipe does with it, said before the first step that trains on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fathom.checkpoint import store
from fathom.data.shards import open_shards
from fathom.errors import DataError, SpecError
from fathom.pipeline.context import StepContext
from fathom.pipeline.steps.needle import make_trials
from fathom.spec.recipe import CorpusStep, NeedleStep, ShardsStep, TrainStep
from fathom.tokenizer import Tokenizer
from fathom.train.preflight import TextReading, reading_lines

_REMEDY = "add text, or use "


def check_text(step: TrainStep, context: StepContext, tokenizer: Tokenizer) -> None:
    """Say how often ``step`` reads its text, and refuse text that it or a later step of the recipe cannot use.

    Raises:
        SpecError: naming every step for whose sequences, passes or haystacks there is too little text.
    """
    faults: list[SpecError] = []
    for other in _readers(step, context):
        try:
            lines = _reading_lines(other, context) if isinstance(other, TrainStep) else []
            if isinstance(other, NeedleStep):
                _check_haystack(other, context, tokenizer)
        except SpecError as error:
            faults.append(error)
            continue
        if other is step:
            for line in lines:
                context.progress.message(line)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        problems = ", and ".join(f"{error.path}: {error.problem}" for error in faults)
        ways = " ".join(error.remedy.removeprefix(_REMEDY) for error in faults)
        raise SpecError("text", problems, f"{_REMEDY}{ways}")


def _readers(step: TrainStep, context: StepContext) -> Sequence[TrainStep | NeedleStep]:
    """Return ``step``, and the steps after it that read the same shards and have not begun."""
    steps = context.recipe.steps[context.recipe.steps.index(step) :]
    found: list[TrainStep | NeedleStep] = []
    for other in steps:
        if isinstance(other, ShardsStep):
            break
        if isinstance(other, TrainStep | NeedleStep):
            begun = context.path(other).exists() and isinstance(other, NeedleStep)
            if not begun and store.latest(context.path(other) / store.CHECKPOINTS) is None:
                found.append(other)
    return found


def _reading_lines(step: TrainStep, context: StepContext) -> list[str]:
    """Return what ``reading_lines`` does; nothing for a step that reads no text."""
    images = step.images
    share = 1.0 if images is None else 1.0 - images.fraction * (1.0 - images.warmup / 2)
    if not share:
        return []
    shards = open_shards(context.path(context.before(step, ShardsStep)), "train")
    weights = {s.name: s.weight for s in context.plan.manifests[context.before(step, CorpusStep).name].sources}
    tokens = {name: len(opened) for name, opened in shards.items() if weights.get(name)}
    text = TextReading(
        tokens=tokens, weights={name: weights[name] for name in tokens}, share=share * (1.0 - step.needle_fraction)
    )
    try:
        return reading_lines(f"{step.name}.train", step.train, text)
    except SpecError as error:
        if not (step.needle_fraction and error.path.endswith("sequence_length")):
            raise
        without = f"{error.remedy} --set {step.name}.needle_fraction=0"  # a short sequence cannot hold the question
        raise SpecError(error.path, error.problem, without) from None


def _check_haystack(step: NeedleStep, context: StepContext, tokenizer: Tokenizer) -> None:
    """Refuse lengths for which too little text is held out; the step itself would, when all training is done."""
    held_out = sum(map(len, open_shards(context.path(context.before(step, ShardsStep)), "held_out").values()))
    if held_out >= max(step.lengths):
        return
    try:
        make_trials(step, tokenizer, np.zeros(held_out, dtype=np.int64))
    except DataError as error:
        fitting = [length for length in step.lengths if length <= held_out]
        listed = ",".join(map(str, fitting))
        use = f"--set {step.name}.lengths=[{listed}]" if fitting else f"a recipe without the step {step.name}"
        problem = f"{held_out:,} tokens are held out, too few for a text of {max(step.lengths):,}"
        raise SpecError(f"{step.name}.lengths", problem, f"{_REMEDY}{use}") from error
