"""Bits per byte of held-out shards and of a user's texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from fathom.data.clean import clean
from fathom.data.folders.documents import FolderReading, folder_sources
from fathom.data.shards import TokenShards, open_shards
from fathom.errors import CheckpointError, DataError
from fathom.evals.bits_per_byte import BitsPerByte, bits_per_byte
from fathom.inference.language_model import LanguageModel
from fathom.inference.loading import find_run
from fathom.inference.run_record import read_recipe
from fathom.model.decoder import Decoder
from fathom.spec.recipe import ShardsStep
from fathom.tokenizer.bpe import Tokenizer

DOCUMENT_SEPARATOR = "\n\n"
"""Separator of documents for a tokenizer without a beginning-of-sequence token."""


def bits_by_source(
    model: Decoder,
    tokenizer: Tokenizer,
    shards: Mapping[str, TokenShards],
    *,
    max_tokens: int,
    context: int | None = None,
    overlap: bool = True,
) -> dict[str, BitsPerByte]:
    """Measure the first ``max_tokens`` tokens of each source.

    Without ``overlap`` the cost is halved and the value slightly higher. Sources of fewer than two tokens are skipped.
    """
    streams = ((name, source.read(0, min(len(source), max_tokens)).tolist()) for name, source in shards.items())
    return measure_streams(model, tokenizer, streams, context=context, overlap=overlap)


def measure_held_out(model: LanguageModel, *, max_tokens: int, context: int | None = None) -> dict[str, BitsPerByte]:
    """Measure the held-out text of the run that a model belongs to.

    Raises:
        CheckpointError: the model belongs to no run, or to one without shards.
    """
    run = find_run(model.path)
    recipe = read_recipe(run) if run is not None else None
    shards = [step for step in recipe.steps if isinstance(step, ShardsStep)] if recipe is not None else []
    if run is None or not shards:
        remedy = "give --text FOLDER, --task NAME or --problems FILE"
        raise CheckpointError(f"{model.path}: belongs to no run with held-out text; {remedy}")
    opened = open_shards(run / shards[-1].name, "held_out", model.tokenizer)
    return bits_by_source(model.model, model.tokenizer, opened, max_tokens=max_tokens, context=context)


def measure_texts(
    model: LanguageModel,
    folders: Sequence[Path],
    *,
    max_tokens: int,
    context: int | None = None,
    text_column: str | None = None,
) -> tuple[dict[str, BitsPerByte], list[str]]:
    """Measure the first ``max_tokens`` tokens of each folder or file of text.

    Returns the measurements by source, and a line for everything that the folders hold and that was left out.

    Documents are wrapped in the tokenizer's beginning- and end-of-sequence tokens, or, where it has none, separated by
    an empty line.
    """
    tokenizer = model.tokenizer
    framed = bool(tokenizer.prefix_ids)

    def tokens(source: Iterable[str]) -> list[int]:
        found: list[int] = []
        for text in source:
            if framed:
                found += [*tokenizer.prefix_ids, *tokenizer.encode(text), tokenizer.eos_id]
            else:
                found += tokenizer.encode(DOCUMENT_SEPARATOR + text if found else text)
            if len(found) >= max_tokens:
                break
        return found[:max_tokens]

    streams, notes = [], []
    for source in folder_sources(folders, text_column):
        reading = FolderReading(source)
        texts = (cleaned for document in reading if (cleaned := clean(document.text)) is not None)
        streams.append((source.name, tokens(texts)))
        notes += [f"{source.name}: {line}" for line in reading.left_out.lines()]
    results = measure_streams(model.model, tokenizer, iter(streams), context=context)
    missing = [name for name, _ in streams if name not in results]
    if missing:
        raise DataError(f"{missing[0]}: holds no text to measure; give a folder of text, code or data files")
    return results, notes


def measure_streams(
    model: Decoder,
    tokenizer: Tokenizer,
    streams: Iterator[tuple[str, list[int]]],
    *,
    context: int | None,
    overlap: bool = True,
) -> dict[str, BitsPerByte]:
    """Measure named streams of tokens; the bytes are those of the text that all tokens but the first decode to."""
    limit = model.spec.max_position_embeddings
    window = limit if context is None else context
    results = {}
    for name, tokens in streams:
        text_bytes = len(
            tokenizer.decode(tokens[1:], continues=True).encode()
        )  # the first token is given, not predicted
        if len(tokens) < 2 or not text_bytes:
            continue
        results[name] = bits_per_byte(
            model, torch.tensor(tokens), text_bytes=text_bytes, context=window, stride=None if overlap else window
        )
    return results
