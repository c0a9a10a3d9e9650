"""Child Pythons that import what this process does, but nothing of the working directory or the environment."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fathom.errors import ResourceError

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


def bare_python(program: Path, *arguments: str) -> list[str]:
    """Return the command of a Python that runs a file and imports the standard library only, so that it starts soon.

    Raises:
        ResourceError: this process does not know its Python, as within another program.
    """
    if not sys.executable:
        raise ResourceError("sys.executable names no Python to start a process with; set it")
    return [sys.executable, "-I", "-S", "-B", str(program), *arguments]


def bare_environment() -> dict[str, str]:
    """Return the variables of a ``bare_python``: the time zone, and what Windows needs."""
    return _environment(("TZ", "SYSTEMROOT"))


def package_folder(name: str) -> str:
    """Return the folder that an installed package lies in; ``ResourceError`` where there is none."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ResourceError(f"{name} is not installed; pip install {name}")
    return str(Path(spec.origin).parents[1])


def import_path() -> list[str]:
    """Return where this process imports from, without the working directory unless Fathom itself lies there."""
    path = [folder for folder in sys.path if folder and (_is_root(folder) or not _is_working_directory(folder))]
    return path if any(map(_is_root, path)) else [*path, str(_ROOT)]


def minimal_environment() -> dict[str, str]:
    """Return the variables that a Python may need to start, and none that may hold a secret."""
    return _environment(_KEPT)


def _environment(names: Sequence[str]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}


def _is_root(folder: str) -> bool:
    return Path(folder).resolve() == _ROOT


def _is_working_directory(folder: str) -> bool:
    try:
        return os.path.samefile(folder, os.curdir)
    except OSError:
        return False
