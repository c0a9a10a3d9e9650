"""The open step: an existing model becomes the first checkpoint of a run."""

from __future__ import annotations

import torch

from fathom.checkpoint import store
from fathom.checkpoint.fathom_checkpoint import write_fathom
from fathom.errors import SpecError
from fathom.inference.loading import open_source
from fathom.pipeline.context import StepContext
from fathom.pipeline.run_models import beside_recipe
from fathom.spec.recipe import OpenStep


def run(step: OpenStep, context: StepContext) -> None:
    """Write the named model's weights, in float32, as the first checkpoint of ``context.path(step)``.

    A path is taken from the recipe's folder where it leads somewhere from there.
    """
    source = open_source(beside_recipe(context, step.model), context.progress, cache_dir=context.cache_dir)
    tokenizer = source.tokenizer()
    if tokenizer is None:
        raise SpecError(f"steps.{step.name}.model", f"{step.model} has no tokenizer", "use a model that has one")
    directory = store.step_directory(context.path(step) / store.CHECKPOINTS, 0)
    directory.parent.mkdir(parents=True)
    write_fathom(
        directory, source, tokenizer=tokenizer, eos_ids=source.eos_ids, dtype=torch.float32, progress=context.progress
    )
