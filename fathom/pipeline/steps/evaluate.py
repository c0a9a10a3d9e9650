"""The evaluate step: bits per byte of held-out text, of the trained model and of the random one it began as."""

from __future__ import annotations

from fathom.data.shards import open_shards
from fathom.files import write_json
from fathom.inference.held_out import bits_by_source
from fathom.locale import tr
from fathom.pipeline.context import StepContext
from fathom.pipeline.run_models import initial_model, trained_model
from fathom.spec.recipe import EvaluateStep, ShardsStep


def run(step: EvaluateStep, context: StepContext) -> None:
    """Write ``start``, ``end`` (bits per byte by source) and what was measured to ``context.path(step)``.

    The random model has the same shape and context as the trained one, and reads the same text.
    """
    trained = trained_model(context, step)
    tokenizer = trained.tokenizer
    shards = open_shards(context.path(context.before(step, ShardsStep)), "held_out", tokenizer)
    window = step.context
    end = bits_by_source(trained.model, tokenizer, shards, max_tokens=step.max_tokens, context=window)
    random = initial_model(context, step, tokenizer)
    start = bits_by_source(random, tokenizer, shards, max_tokens=step.max_tokens, context=window, overlap=False)
    document = {
        "start": {source: result.value for source, result in start.items()},
        "end": {source: result.value for source, result in end.items()},
        "tokens": {source: result.tokens for source, result in end.items()},
        "bytes": {source: result.text_bytes for source, result in end.items()},
        "context": window or trained.spec.max_position_embeddings,
    }
    write_json(context.path(step), document)
    for source, result in end.items():
        bits = {"bits": f"{result.value:.3f}", "random": f"{start[source].value:.3f}"}
        context.progress.message(tr("{source}: {bits} bits per byte (random {random})", source=source, **bits))
