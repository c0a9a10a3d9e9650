"""The language of the command line: FATHOM_LANG, else that of the locale, where the console can write it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fathom.cli.console import can_write
from fathom.errors import SpecError
from fathom.locale import ENGLISH, LANGUAGES, catalogue, language_of, marked, speak, tr

_VARIABLE = "FATHOM_LANG"
_LOCALES = ("LC_ALL", "LC_MESSAGES", "LANG")
_TYPER_WORDS = {
    "ARGUMENTS_PANEL_TITLE": marked("Arguments"),
    "OPTIONS_PANEL_TITLE": marked("Options"),
    "COMMANDS_PANEL_TITLE": marked("Commands"),
    "DEFAULT_STRING": marked("[default: {}]"),
    "REQUIRED_LONG_STRING": marked("[required]"),
}
"""What typer writes around help, by where it keeps it."""


def choose_language() -> None:
    """Speak the language that the environment asks for; English where stdout or stderr lacks its characters."""
    language = wanted_language()
    characters = "".join(catalogue(language).messages.values())
    written = all(stream is None or can_write(characters, stream) for stream in (sys.stdout, sys.stderr))
    speak(language if written else ENGLISH)


def wanted_language() -> str:
    """Return the language of FATHOM_LANG, else of the first that is set of LC_ALL, LC_MESSAGES and LANG.

    Raises:
        SpecError: FATHOM_LANG names a language that there is no catalogue for; locales may name any.
    """
    own = os.environ.get(_VARIABLE)
    if own:
        found = language_of(own)
        if found is None:
            raise SpecError(_VARIABLE, f"there is no translation into {own!r}", f"set {' or '.join(LANGUAGES)}")
        return found
    return language_of(next(filter(None, map(os.environ.get, _LOCALES)), _windows_locale())) or ENGLISH


def _windows_locale() -> str:
    """Return the locale of Windows' own menus, which sets none of the variables; C elsewhere."""
    if sys.platform != "win32":
        return "C"
    import ctypes
    import locale

    return locale.windows_locale.get(ctypes.windll.kernel32.GetUserDefaultUILanguage(), "C")


def translate_help(command: Any) -> None:
    """Translate the help of a command, of its parameters and of the commands in it; brackets are no markup in it."""
    from rich.markup import escape

    for described in (command, *command.params):
        if getattr(described, "help", None):
            described.help = escape(tr(described.help))
    for each in getattr(command, "commands", {}).values():
        translate_help(each)


@contextmanager
def translated_frame() -> Iterator[None]:
    """Translate what typer writes around help, and have it fold lines without spaces, within a ``with`` block."""
    from rich.text import Text
    from typer import rich_utils

    class FoldedText(Text):
        @classmethod
        def from_markup(cls, *given: Any, **more: Any) -> Text:
            return Text.from_markup(*given, **{**more, "overflow": "fold"})

    words = {name: tr(word) for name, word in _TYPER_WORDS.items()} | {"Text": FoldedText}
    before = {name: getattr(rich_utils, name) for name in words if name in vars(rich_utils)}
    vars(rich_utils).update({name: words[name] for name in before})
    try:
        yield
    finally:
        vars(rich_utils).update(before)
