"""The recipes that come with Fathom: by name, wherever it was installed."""

from __future__ import annotations

import re
from pathlib import Path

import fathom
from fathom.errors import SpecError

RECIPES = "recipes"


def recipes_directory() -> Path:
    """Return where the recipes are: within the installed package, or in the checkout that it lies in."""
    package = Path(fathom.__file__).parent
    installed = package / RECIPES
    return installed if installed.is_dir() else package.parent / RECIPES


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes by name."""
    return {path.stem: path for path in sorted(recipes_directory().glob("*.toml"))}


def find_recipe(given: Path) -> Path:
    """Return the file itself where there is one, else the recipe of that name, such as ``quickstart``.

    Raises:
        SpecError: neither; the message lists the names.
    """
    if given.exists():
        return given
    shipped = shipped_recipes()
    by_name = given.parent in (Path(), Path(RECIPES)) and given.suffix in ("", ".toml")
    if by_name and given.stem in shipped:
        return shipped[given.stem]
    raise SpecError(str(given), "no such file", f"check the path, or give one of {', '.join(shipped)}")


def summary(recipe: Path) -> str:
    """Return the comment that a recipe begins with, up to its first full stop or colon."""
    words: list[str] = []
    for line in recipe.read_text(encoding="utf-8").splitlines():
        if line.startswith("#:"):
            continue
        if not line.startswith("#") or not line.strip("# "):
            break
        words.append(line.strip("# "))
    return re.split(r"[.:] ", " ".join(words) + " ", maxsplit=1)[0]
