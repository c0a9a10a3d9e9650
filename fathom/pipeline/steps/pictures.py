"""The pictures step: draw image-text pairs."""

from __future__ import annotations

from fathom.data.synthetic_images import write_synthetic_images
from fathom.pipeline.context import StepContext
from fathom.spec.recipe import PicturesStep


def run(step: PicturesStep, context: StepContext) -> None:
    """Draw the pictures into ``context.path(step)``."""
    write_synthetic_images(
        context.path(step),
        count=step.count,
        held_out=step.held_out,
        size=step.size,
        seed=step.seed,
        progress=context.progress,
    )
