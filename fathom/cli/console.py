"""Text in and out of consoles that cannot write every character, such as those of cp1252, gbk or ASCII."""

from __future__ import annotations

import codecs
import io
import json
import sys
import unicodedata
from collections.abc import Mapping
from typing import Any, TextIO

_REPLACED, _ESCAPED = "fathom.replace", "fathom.escape"
_STANDARD_ERRORS = frozenset({"strict", "surrogateescape", "backslashreplace"})
"""What Python sets by itself; anything else was asked for with PYTHONIOENCODING."""
_SIMILAR: Mapping[str, str] = {
    **dict.fromkeys("‘’‚′", "'"),
    **dict.fromkeys("“”„″«»", '"'),
    **dict.fromkeys("‐‑‒–—―−─━┄┅┈┉╌╍═", "-"),
    **dict.fromkeys("│┃┆┇┊┋╎╏║", "|"),
    **dict.fromkeys("•‣▪●◦·", "*"),
    **dict.fromkeys("✓✔", "v"),
    **dict.fromkeys("✗✘×", "x"),
    "…": "...",
    "→": "->",
    "←": "<-",
    "⇒": "=>",
    "≤": "<=",
    "≥": ">=",
    "≠": "!=",
    "≈": "~",
    "±": "+/-",
    "µ": "u",
    "\xa0": " ",
    "\u3000": " ",
}


def prepare_streams() -> None:
    """Make printing and reading never fail at a character that the console's encoding does not have.

    In what is printed a similar ASCII character stands in for it where there is one, for instance in tables; else a
    question mark on stdout, and on stderr its escape, by which a file's name can still be told. What stdin holds that
    is no text in its encoding is read as U+FFFD. UTF-8 passes unchanged. How errors are handled is left as it is where
    PYTHONIOENCODING says how.
    """
    codecs.register_error(_REPLACED, lambda error: _written(error, escape=False))
    codecs.register_error(_ESCAPED, lambda error: _written(error, escape=True))
    for stream, errors in ((sys.stdout, _REPLACED), (sys.stderr, _ESCAPED)):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in _STANDARD_ERRORS:
            is_utf8 = codecs.lookup(stream.encoding).name == "utf-8"
            if not is_utf8 or stream.errors == "strict":  # in UTF-8 only names of files that are no text can fail
                stream.reconfigure(errors=errors)
    if isinstance(sys.stdin, io.TextIOWrapper) and sys.stdin.errors in _STANDARD_ERRORS:
        sys.stdin.reconfigure(errors="replace")


def print_json(value: Any, *, indent: int | None = 2, default: Any = None) -> None:
    """Print JSON on stdout, in which whatever the stream's encoding does not have is escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=default)
    if not can_write(text, sys.stdout):
        text = json.dumps(value, indent=indent, default=default)
    print(text)


def can_write(text: str, stream: TextIO) -> bool:
    """Whether a stream's encoding has every character of a text."""
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def readable(text: str) -> str:
    """Return an argument of the command line as text: as UTF-8, with U+FFFD where it is not."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _written(error: UnicodeError, *, escape: bool) -> tuple[str, int]:
    """Return what is written instead of what cannot be encoded, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unknown = error.object[error.start : error.end]
    return "".join(_similar(character, escape) for character in unknown), error.end


def _similar(character: str, escape: bool) -> str:
    if character in _SIMILAR:
        return _SIMILAR[character]
    if "\u2500" <= character <= "\u257f":  # corners and crossings of boxes
        return "+"
    if "\u2580" <= character <= "\u259f":  # blocks of bars
        return "#"
    if unicodedata.combining(character) or unicodedata.category(character) == "Cf":
        return ""
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    if plain:
        return plain
    return character.encode("ascii", "backslashreplace").decode() if escape else "?"
