"""The needle step: retrieval over depth and length, with keys and numbers that training never shows."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from fathom.data.needle import make_needle
from fathom.data.shards import open_shards
from fathom.evals.needle import NeedleTrial, needle_in_haystack
from fathom.files import write_json
from fathom.pipeline.context import StepContext
from fathom.pipeline.run_models import trained_model
from fathom.spec.recipe import NeedleStep, ShardsStep
from fathom.tokenizer.bpe import Tokenizer

HAYSTACK_TOKENS = 65_536
"""Held-out tokens of each source that haystacks are cut from."""
SEED = 20


def run(step: NeedleStep, context: StepContext) -> None:
    """Write lengths, depths, accuracy and gain to ``context.path(step)``."""
    model = trained_model(context, step)
    shards = open_shards(context.path(context.before(step, ShardsStep)), "held_out", model.tokenizer)
    haystack = np.concatenate([source.read(0, min(len(source), HAYSTACK_TOKENS)) for source in shards.values()])
    trials = make_trials(step, model.tokenizer, haystack)
    result = needle_in_haystack(model.model, trials, progress=context.progress)
    write_json(context.path(step), dataclasses.asdict(result) | {"trials": step.trials})


def make_trials(step: NeedleStep, tokenizer: Tokenizer, haystack: NDArray[np.int64]) -> list[NeedleTrial]:
    """Make ``step.trials`` questions for every length and depth, the same ones for the same haystack."""
    trials = []
    for length in step.lengths:
        for depth in step.depths:
            for trial in range(step.trials):
                rng = np.random.default_rng([SEED, length, round(depth * 1000), trial])
                sample = make_needle(tokenizer, haystack, length, depth, rng, "eval")
                trials.append(
                    NeedleTrial(
                        length=length,
                        depth=depth,
                        prompt_ids=sample.prompt_ids,
                        blank_prompt_ids=sample.blank_ids,
                        answer_ids=sample.answer_ids,
                    )
                )
    return trials
