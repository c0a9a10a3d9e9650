"""Options and environment that several verbs share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Model = Annotated[
    str,
    typer.Argument(
        help="A run, one of its checkpoints, a directory with config.json, a .gguf file, "
        "a name that `fathom models` lists as ready, or owner/name on the hub."
    ),
]


def cache_directory() -> Path:
    """Where fetched sources are kept: FATHOM_CACHE, else fathom/ in XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("FATHOM_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fathom"
