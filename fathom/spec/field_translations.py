"""What fields of recipes mean, in other languages: ``fathom/locale/LANGUAGE/fields.toml``."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources

from fathom.locale import ENGLISH
from fathom.spec.field_docs import FieldDoc, summary

_QUOTED = re.compile(r'("[^"]*")')


@cache
def translations(language: str) -> Mapping[str, Mapping[str, str]]:
    """Return, for each spec by its name, its ``summary`` and the meanings of its own fields; ``units`` and ``types``.

    ``types`` are the words of which descriptions of types consist.
    """
    file = resources.files("fathom") / "locale" / language / "fields.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


def translated_meaning(spec: type, field: str, language: str) -> str | None:
    """Return what a field means in a language, None where nobody has translated it; inherited fields included."""
    table = translations(language)
    return next((table[each.__name__][field] for each in spec.__mro__ if field in table.get(each.__name__, {})), None)


def translated_summary(spec: type, language: str) -> str | None:
    """Return what a spec is in a language, None where nobody has translated it."""
    return translations(language).get(spec.__name__, {}).get("summary")


def field_doc_in(doc: FieldDoc, language: str) -> FieldDoc:
    """Return a field's documentation in a language; what is not translated stays English."""
    if language == ENGLISH:
        return doc
    unit = None if doc.unit is None else translations(language)["units"].get(doc.unit, doc.unit)
    meaning = translated_meaning(doc.spec, doc.name, language) or doc.meaning
    return dataclasses.replace(doc, meaning=meaning, unit=unit, type=_type_in(doc.type, language))


def summary_in(spec: type, language: str) -> str:
    """Return what a spec is in a language, in English where nobody has translated it."""
    translated = None if language == ENGLISH else translated_summary(spec, language)
    return translated or f"{summary(spec)}."


def _type_in(text: str, language: str) -> str:
    pieces = _QUOTED.split(text)  # values in quotation marks stay
    for english, translated in translations(language)["types"].items():
        pieces[::2] = [piece.replace(english, translated) for piece in pieces[::2]]
    return "".join(pieces)
