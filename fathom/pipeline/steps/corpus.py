"""The corpus step: sources to documents, cleaned, deduplicated, and split into training and held-out."""

from __future__ import annotations

from fathom.data.corpus import build_corpus
from fathom.locale import tr
from fathom.pipeline.context import StepContext
from fathom.progress import size
from fathom.spec.recipe import CorpusStep


def run(step: CorpusStep, context: StepContext) -> None:
    """Build the corpus at ``context.path(step)``."""
    sources = context.plan.manifests[step.name].sources
    summary = build_corpus(step, sources, context.path(step), context.cache_dir, context.progress)
    for name, source in summary.sources.items():
        for line in source.left_out.lines():
            context.progress.message(f"{name}: {line}")
        if source.cut:
            held_out = source.bytes["held_out"]
            share = held_out / (held_out + source.bytes["train"])
            said = tr(
                "{name}: {count} documents are cut at paragraphs, so that {share} of the text is held out; "
                "whole documents are too few",
                name=name,
                count=f"{source.cut:,}",
                share=f"{share:.0%}",
            )
            context.progress.message(said)
    kept = {"count": f"{summary.documents:,}", "size": size(summary.bytes)}
    context.progress.message(tr("{count} documents, {size} of text kept", **kept))
