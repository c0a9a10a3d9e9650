"""Where what is fetched is kept: one rule for the command line and the library."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def cache_directory(environment: Mapping[str, str] | None = None) -> Path:
    """Return FATHOM_CACHE, else fathom/ in XDG_CACHE_HOME, else ~/.cache/fathom; of this process unless one is given.

    Models of the hub lie in huggingface_hub's own cache, whose variables it reads itself.
    """
    given = os.environ if environment is None else environment
    own = given.get("FATHOM_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(given.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fathom"
