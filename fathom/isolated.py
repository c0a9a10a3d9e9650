"""Child Pythons that import what this process does, but nothing of the working directory or the environment."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_START = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1))\n"
_KEPT = (
    *("LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "TEMP", "TMP"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT"),
)


def isolated_python(program: str, *arguments: str, options: Sequence[str] = ()) -> list[str]:
    """Return the command of a Python with ``import_path`` that runs ``program``; ``sys.argv[1:]`` are ``arguments``.

    Isolated (-I), it has no path of its own to the working directory, PYTHONPATH or the user's packages. ``options``
    are Python's own.
    """
    return [sys.executable, "-I", *options, "-c", _START + program, json.dumps(import_path()), *arguments]


def import_path() -> list[str]:
    """Return where this process imports from, without the working directory unless Fathom itself lies there."""
    path = [folder for folder in sys.path if folder and (_is_root(folder) or not _is_working_directory(folder))]
    return path if any(map(_is_root, path)) else [*path, str(_ROOT)]


def minimal_environment() -> dict[str, str]:
    """Return the variables that a Python may need to start, and none that may hold a secret."""
    return {name: os.environ[name] for name in _KEPT if name in os.environ}


def _is_root(folder: str) -> bool:
    return Path(folder).resolve() == _ROOT


def _is_working_directory(folder: str) -> bool:
    try:
        return os.path.samefile(folder, os.curdir)
    except OSError:
        return False
