"""The tokenizer step: learn a vocabulary from a sample of the training documents, by source weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fathom.data.corpus import read_documents
from fathom.locale import tr
from fathom.pipeline.context import StepContext
from fathom.spec.data import Source
from fathom.spec.recipe import CorpusStep, TokenizerStep
from fathom.tokenizer.training import train_bpe


def run(step: TokenizerStep, context: StepContext) -> None:
    """Train the tokenizer and save it at ``context.path(step)``."""
    corpus = context.before(step, CorpusStep)
    sources = context.plan.manifests[corpus.name].sources
    texts = sample_texts(context.path(corpus), sources, step.sample_bytes)
    tokenizer = train_bpe(texts, vocab_size=step.vocab_size, progress=context.progress)
    tokenizer.save(context.path(step))
    context.progress.message(tr("{count} tokens learned", count=f"{tokenizer.vocab_size:,}"))


def sample_texts(corpus: Path, sources: Sequence[Source], sample_bytes: int) -> Iterator[str]:
    """Yield training documents of each source up to its weighted share of ``sample_bytes``."""
    total = sum(source.weight for source in sources)
    for source in sources:
        left = sample_bytes * source.weight / total
        for document in read_documents(corpus, source.name, "train"):
            yield document.text
            left -= len(document.text.encode())
            if left <= 0:
                break
