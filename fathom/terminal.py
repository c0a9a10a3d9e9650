"""Text from outside, such as a model's words, names in files and messages, made safe for terminals and logs.

A terminal obeys control characters: it moves its cursor, writes the clipboard (OSC 52), hides an address behind other
words (OSC 8) and reorders text (bidi controls). Such characters are written as their JSON escapes instead: ESC is shown
as ``\\u001b``, and a line of JSON stays JSON of the same value.
"""

from __future__ import annotations

import re
import unicodedata

MAX_MARKS = 8
"""Characters without a width of their own that may follow one another; scripts stack at most half as many."""

_KEPT_FORMATS = frozenset(
    "\u00ad\u200b\u200c\u200d\u2060"  # where words may break, and the joiners of Persian, Indic scripts and emoji
    "\u200e\u200f\u061c"  # left-to-right, right-to-left and Arabic letter marks: like a letter, they override nothing
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"  # visible signs
)
_IGNORABLE = re.compile("[\U000e0000-\U000e00ff\U000e01f0-\U000e0fff]")
"""Tag characters and what is reserved beside them: drawn as nothing at all."""
_PLAIN = re.compile(r"[\n\t -~]*")
_OBEYED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class TerminalFilter:
    """Filters a text that arrives in pieces; however it is cut, the pieces add up to the same."""

    def __init__(self) -> None:
        self._after_return = False
        self._marks = 0

    def feed(self, piece: str) -> str:
        """Return the next piece as it may be written.

        Newlines and tabs pass, a carriage return begins a new line, and what a terminal would obey or not show at all
        is escaped, as are marks beyond ``MAX_MARKS`` above one another.
        """
        if piece and not self._after_return and _PLAIN.fullmatch(piece):
            self._marks = 0
            return piece
        return "".join(map(self._character, piece))

    def _character(self, character: str) -> str:
        after_return, self._after_return = self._after_return, character == "\r"
        marks, self._marks = self._marks, 0
        if character in "\r\n":
            return "" if after_return and character == "\n" else "\n"
        if character == "\t" or " " <= character <= "~":
            return character
        category = unicodedata.category(character)
        kept = character in _KEPT_FORMATS
        if (category in _OBEYED and not kept) or _IGNORABLE.match(character):
            return _escaped(character)
        if not kept and category not in ("Mn", "Me"):
            return character
        self._marks = marks + 1
        return character if marks < MAX_MARKS else _escaped(character)


def visible(text: str) -> str:
    """Return a whole text as a terminal may be given it (see ``TerminalFilter.feed``)."""
    return TerminalFilter().feed(text)


def one_line(text: str) -> str:
    """Return a text as one line of a log or a terminal: white space is one space, the rest as ``visible`` has it."""
    return visible(" ".join(text.split()))


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{int.from_bytes(units[at : at + 2]):04x}" for at in range(0, len(units), 2))
