"""What people read, in their language: catalogues beside this file, and the one language that a process speaks.

English is the default, and the templates in the code are its catalogue. Only the command line chooses another language,
once, for itself: the library speaks English to every other program. Errors, logs and what programs read stay English.
"""

from __future__ import annotations

import gettext
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import resources

ENGLISH = "en"
LANGUAGES = (ENGLISH, "zh_CN")
"""What there is a catalogue for, by gettext's names of locales."""


class Catalogue(gettext.NullTranslations):
    """Translations of a language by their English templates, in gettext's interface."""

    def __init__(self, messages: Mapping[str, str]) -> None:
        super().__init__()
        self.messages = messages

    def gettext(self, message: str) -> str:
        """Return the translation of a template, the template itself where there is none."""
        return self.messages.get(message, message)


class _Spoken:
    language = ENGLISH


@cache
def catalogue(language: str) -> Catalogue:
    """Return the catalogue of one of ``LANGUAGES``: the tables of its ``messages.toml`` as one."""
    if language == ENGLISH:
        return Catalogue({})
    file = resources.files("fathom") / "locale" / language / "messages.toml"
    tables = tomllib.loads(file.read_text(encoding="utf-8")).values()
    return Catalogue({template: text for table in tables for template, text in table.items()})


def speak(language: str) -> None:
    """Choose the language of ``tr`` for this process."""
    _Spoken.language = language


def spoken() -> str:
    """Return the language of ``tr``."""
    return _Spoken.language


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """Speak a language within a ``with`` block."""
    before = spoken()
    speak(language)
    try:
        yield
    finally:
        speak(before)


def tr(message: str, /, **values: object) -> str:
    """Return a text in the chosen language.

    ``message`` is the English template, written out where it is used, and ``values`` are its ``{name}`` placeholders.
    """
    text = catalogue(_Spoken.language).gettext(message)
    return text.format(**values) if values else text


def marked(message: str) -> str:
    """Return a text unchanged, for tables of texts that ``tr`` translates later: tests find it and ask for both."""
    return message


def language_of(locale: str) -> str | None:
    """Return the one of ``LANGUAGES`` that a locale such as ``zh_CN.UTF-8`` asks for, None where there is none.

    Simplified Chinese is no answer to a locale of traditional Chinese (zh_TW, zh_HK).
    """
    name, _, place = locale.partition(".")[0].partition("@")[0].replace("-", "_").lower().partition("_")
    if name in ("c", "posix", "en"):
        return ENGLISH
    if name == "zh" and place.split("_")[0] in ("", "cn", "sg", "hans"):
        return "zh_CN"
    return None
