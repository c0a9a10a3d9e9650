"""The sample step: continue a few prompts with the trained model."""

from __future__ import annotations

import dataclasses

from fathom.files import write_json
from fathom.pipeline.context import StepContext
from fathom.pipeline.run_models import trained_model
from fathom.spec.recipe import SampleStep


def run(step: SampleStep, context: StepContext) -> None:
    """Write prompts and continuations to ``context.path(step)``; the i-th prompt draws with seed + i.

    An answer is cut where the context ends.
    """
    model = trained_model(context, step)
    tokenizer = model.tokenizer
    prompts = [[*tokenizer.prefix_ids, *tokenizer.encode(prompt)] for prompt in step.prompts]
    seed = step.sampling.seed or 0
    limits = [max(1, model.spec.max_position_embeddings - len(prompt)) for prompt in prompts]
    params = [
        dataclasses.replace(step.sampling, seed=seed + index, max_tokens=min(step.sampling.max_tokens, limit))
        for index, limit in enumerate(limits)
    ]
    completions = model.engine.sample(prompts, params)
    samples = [
        {"prompt": prompt, "continuation": tokenizer.decode(completion.token_ids, continues=True)}
        for prompt, completion in zip(step.prompts, completions, strict=True)
    ]
    write_json(context.path(step), {"samples": samples})
