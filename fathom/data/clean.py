"""Normalizing text: Unicode form, line ends, invisible characters, blank lines."""

from __future__ import annotations

import re
import unicodedata

MAX_REPLACEMENT_RATIO = 0.001
MAX_BLANK_LINES = 2

_LINE_ENDS = re.compile(r"\r\n?|[\u0085\u2028\u2029]")
# C0 but tab and newline, DEL, C1, zero-width space, word joiner, BOM, bidirectional marks, surrogates, soft hyphen
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f"
    "\ufeff\ud800-\udfff\u00ad\ufff9-\ufffb]"
)
_TRAILING = re.compile(r"(?<![ \t\u3000])[ \t\u3000]++$", re.MULTILINE)
_BLANK = re.compile(rf"\n{{{MAX_BLANK_LINES + 2},}}")


def clean(text: str) -> str | None:
    """Return the text in Unicode form NFC with plain line ends, or None if it is too broken to use.

    Control and invisible characters go (zero-width joiner and non-joiner stay: scripts and emoji need them), spaces
    at line ends and more than two blank lines in a row too. A text in which more than one character in 1000 is
    U+FFFD was decoded wrongly somewhere and is refused. Cleaning twice changes nothing more.
    """
    if text.count("\ufffd") > MAX_REPLACEMENT_RATIO * len(text):
        return None
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    text = _INVISIBLE.sub("", _LINE_ENDS.sub("\n", text))
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)  # characters may have met where an invisible one was
    text = _TRAILING.sub("", text)
    return _BLANK.sub("\n" * (MAX_BLANK_LINES + 1), text).strip("\n")
