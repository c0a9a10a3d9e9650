"""Options of every verb that runs an engine: precision, packed weights and cache, drafts; and opening a model so."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fathom.cli import options
from fathom.cli.load_progress import LoadProgress
from fathom.errors import DataError
from fathom.locale import tr
from fathom.spec import check
from fathom.spec.engine import (
    CACHE_FORMATS,
    DRAFTING,
    WEIGHT_CHOICES,
    CacheFormat,
    Drafting,
    EngineSpec,
    WeightChoice,
)

if TYPE_CHECKING:
    from fathom.inference.language_model import LanguageModel

Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32 or bfloat16.")]
Weights = Annotated[str, typer.Option("--weights", help=f"How weights are kept: {', '.join(WEIGHT_CHOICES)}.")]
Cache = Annotated[str, typer.Option("--cache", help=f"How numbers lie in the cache: {', '.join(CACHE_FORMATS)}.")]
Draft = Annotated[
    str, typer.Option("--draft", help=f"How tokens are guessed ahead: {', '.join(DRAFTING)} (mtp if there is one).")
]
ChatTemplate = Annotated[
    str | None,
    typer.Option("--chat-template", help="One of the model's chat templates by name, or a file of jinja2."),
]
Adapter = Annotated[
    str | None,
    typer.Option("--adapter", help="An adapter to merge in: a directory of PEFT's, or a step that trained one."),
]


def engine_spec(cache: str, draft: str, **others: int | bool | None) -> EngineSpec:
    """Return the engine's configuration; ``SpecError`` names the option that is wrong."""
    check.one_of("--cache", cache, CACHE_FORMATS)
    check.one_of("--draft", draft, DRAFTING)
    return EngineSpec(
        cache_format=cast(CacheFormat, cache),
        drafting=cast(Drafting, draft),
        **others,  # type: ignore[arg-type]
    )


def open_model(
    name: str,
    device: str,
    dtype: str,
    weights: str = "auto",
    engine: EngineSpec | None = None,
    chat_template: str | None = None,
    adapter: str | None = None,
) -> LanguageModel:
    """Open a model that has a tokenizer, showing what is fetched and loaded."""
    check.one_of("--weights", weights, WEIGHT_CHOICES)
    from fathom.inference.language_model import LanguageModel

    with LoadProgress(name) as progress:
        model = LanguageModel.open(
            name,
            device=device,
            dtype=dtype,
            weights=cast(WeightChoice, weights),
            progress=progress,
            cache_dir=options.cache_directory(),
            engine=engine,
            chat_template=read_template(chat_template),
            adapter=adapter,
        )
    _ = model.tokenizer
    return model


def read_template(given: str | None) -> str | None:
    """Return the text of a file, or what is no file unchanged: it may be a name."""
    if given is None or not os.path.isfile(given):  # Path.is_file raises where a text is too long for a path
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--chat-template: {given} cannot be read ({error}); give a text file of jinja2") from None


def announce(model: LanguageModel) -> None:
    """Say on stderr what the model is and what a token costs in its cache."""
    spec = model.spec
    said = tr(
        "{model}: {attention}, context {context}, cache {bytes} bytes per token",
        model=spec.name,
        attention=spec.attention.label,
        context=spec.max_position_embeddings,
        bytes=f"{model.cache_bytes_per_token:,.12g}",
    )
    print(said, file=sys.stderr)
