"""Options and environment that several verbs share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Model = Annotated[Path, typer.Argument(help="A run directory, one of its checkpoints, or an exported model.")]


def cache_directory() -> Path:
    """Where fetched sources are kept: FATHOM_CACHE, else fathom/ in XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("FATHOM_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fathom"
