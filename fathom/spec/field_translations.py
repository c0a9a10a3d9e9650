"""What fields of recipes mean, in other languages: ``fathom/locale/LANGUAGE/fields.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources


@cache
def translations(language: str) -> Mapping[str, Mapping[str, str]]:
    """Return, for each spec by its name, its ``summary`` and the meanings of its own fields; ``units`` beside them."""
    file = resources.files("fathom") / "locale" / language / "fields.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


def translated_meaning(spec: type, field: str, language: str) -> str | None:
    """Return what a field means in a language, None where nobody has translated it; inherited fields included."""
    table = translations(language)
    return next((table[each.__name__][field] for each in spec.__mro__ if field in table.get(each.__name__, {})), None)


def translated_summary(spec: type, language: str) -> str | None:
    """Return what a spec is in a language."""
    return translations(language).get(spec.__name__, {}).get("summary")
