"""The optional packages of Fathom, and the command that installs them where Fathom itself was installed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

DISTRIBUTION = "fathom-lm"
_EXTRA = re.compile(r"""\s*;.*extra\s*==\s*['"]([^'"]+)['"].*""")


def pip() -> str:
    """Return how this Python's pip is called from the working directory: ``pip`` where the shell finds that one."""
    found = shutil.which("pip")
    if found is not None and Path(found).parent == Path(sys.executable).parent:
        return "pip"
    return f"{shlex.quote(_from_here(Path(sys.executable)))} -m pip"


def install_extra(extra: str) -> str:
    """Return a command that installs an extra: of the checkout that is in use, else its packages by name."""
    root = checkout_directory()
    if root is not None:
        return f"{pip()} install -e {shlex.quote(f'{_from_here(root)}[{extra}]')}"
    from packaging.requirements import Requirement

    named = [Requirement(line) for line, of in requirement_lines() if of == extra]
    wanted = [
        f"{each.name}{each.specifier}" for each in named if not each.marker or each.marker.evaluate({"extra": extra})
    ]
    return " ".join([pip(), "install", *map(shlex.quote, wanted)])


def requirement_lines() -> Iterator[tuple[str, str]]:
    """Yield requirements as written, with their extra: of a checkout's pyproject.toml, else of the installed one."""
    project = _checkout()
    if project is not None:
        yield from ((line, "") for line in project["dependencies"])
        for extra, lines in project["optional-dependencies"].items():
            yield from ((line, extra) for line in lines)
        return
    try:
        given = metadata.requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return
    for line in given:
        found = _EXTRA.search(line)
        yield line, found.group(1) if found else ""


def checkout_directory() -> Path | None:
    """Return the checkout that this package lies in, or None where it was installed from a wheel."""
    return Path(__file__).parents[1] if _checkout() is not None else None


def _checkout() -> Mapping[str, Any] | None:
    path = Path(__file__).parents[1] / "pyproject.toml"
    try:
        project: Mapping[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError):
        return None
    return project if project.get("name") == DISTRIBUTION and "dependencies" in project else None


def _from_here(path: Path) -> str:
    """Return a path as one would type it: relative where it lies in the working directory."""
    try:
        near = path.relative_to(Path.cwd())
    except (OSError, ValueError):
        return str(path)
    return str(near) if near.name else os.curdir
