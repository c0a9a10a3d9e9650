"""Options and environment that several verbs share."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fathom.cache import cache_directory
from fathom.errors import SpecError

__all__ = ["cache_directory"]

_SIZE = re.compile(r"(\d{1,15}(?:\.\d+)?)\s*(?:([kmgt])(i)?)?b?", re.IGNORECASE)

Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 (the second GPU) or mps.")]
Track = Annotated[
    list[str] | None,
    typer.Option("--track", help="Send metrics to tensorboard, wandb or trackio; may be repeated."),
]
Format = Annotated[str | None, typer.Option("--format", help="Read data in this format, as in a recipe.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="Change a field, e.g. pretrain.train.total_tokens=500000.")
]
Text = Annotated[
    list[Path] | None, typer.Option("--text", help="Train on this folder of text instead; may be repeated.")
]
Restart = Annotated[bool, typer.Option("--restart", help="Remove the run in --out and begin again.")]
Field = Annotated[
    list[str] | None, typer.Option("--field", help="A column of the data, as prompt=COLUMN; may be repeated.")
]
TextColumn = Annotated[
    str | None,
    typer.Option("--text-column", help="The column that holds the text of --text's data files."),
]
Model = Annotated[
    str,
    typer.Argument(
        help="A run, one of its checkpoints, a directory with config.json, a .gguf file, "
        "a name that `fathom models` lists as ready, or owner/name[@revision][:quantisation] on the hub."
    ),
]

ModelOrData = Annotated[
    str,
    typer.Argument(
        help="A model, as for other verbs: a run, a checkpoint, a directory, a .gguf file, a name. Or data: a file or "
        "folder of .jsonl, .json, .parquet or .csv, compressed or not."
    ),
]


def command_line(context: typer.Context, **changed: object) -> str:
    """Return the command that is being run, with some of its parameters changed."""
    words = ["fathom", str(context.info_name)]
    for parameter in context.command.params:
        value = changed.get(str(parameter.name), context.params.get(str(parameter.name)))
        if value in (None, False, []) or value == parameter.get_default(context):
            continue
        name = [option for option in parameter.opts if option.startswith("--")][:1]
        for each in value if isinstance(value, list | tuple) else [value]:
            words += name if each is True else [*name, str(each)]
    return shlex.join(words)


def columns_of(fields: Sequence[str] | None) -> dict[str, str]:
    """Return what ``--field`` names: a file's columns by a form's.

    Raises:
        SpecError: one is not written as NAME=COLUMN.
    """
    found = {}
    for text in fields or ():
        name, equals, column = text.partition("=")
        if not (name and equals and column):
            raise SpecError("--field", f"{text!r} names no column", "write it as prompt=COLUMN")
        found[name] = column
    return found


def parse_bytes(option: str, text: str) -> int:
    """Return a size in bytes: 8GiB, 500MB, 1.5G or 4096; K, M, G, T and KB ... are powers of 1000, KiB ... of 1024.

    Raises:
        SpecError: no size, or none above 0.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise SpecError(option, f"{text!r} is no size", "give one such as 8GiB or 500MB")
    number, unit, binary = found.groups()
    size = int(float(number) * (1024 if binary else 1000) ** ("kmgt".index(unit.lower()) + 1 if unit else 0))
    if size < 1:
        raise SpecError(option, f"{text!r} is no size above 0", "give one such as 8GiB or 500MB")
    return size
