"""The shards step: every document as token ids on disk."""

from __future__ import annotations

from fathom.data.shards import write_shards
from fathom.locale import tr
from fathom.pipeline.context import StepContext
from fathom.pipeline.run_models import run_tokenizer
from fathom.spec.recipe import CorpusStep, ShardsStep


def run(step: ShardsStep, context: StepContext) -> None:
    """Write the shards at ``context.path(step)``."""
    corpus = context.path(context.before(step, CorpusStep))
    tokenizer = run_tokenizer(context, step)
    indexes = write_shards(
        corpus, tokenizer, context.path(step), shard_tokens=step.shard_tokens, progress=context.progress
    )
    counts = {split: sum(index.tokens for index in sources.values()) for split, sources in indexes.items()}
    shown = {name: f"{counts[name]:,}" for name in ("train", "held_out")}
    context.progress.message(tr("{train} tokens to train on, {held_out} held out", **shown))
