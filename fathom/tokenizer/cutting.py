"""Long texts in pieces that encode to the same tokens as the whole.

The library takes a hundred bytes for each byte that it encodes at once. Most tokenizers split a text into words before
anything else, so that a text can be cut between two of them; whether it can is tried on the text around each place.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

PIECE_CHARS = 1 << 15
MAX_STRETCH = 1 << 16
"""Characters that are encoded at once at most, where the number of tokens is limited."""
_WINDOW = 256
"""Characters on either side of a place that are encoded with and without a cut there."""
_SEARCHED = 1 << 14
_TRIES = 16
"""Places tried in a row before a text counts as one that cannot be cut."""
PUNCTUATION = string.punctuation.replace("_", "") + "，。、；：？！"
_BETWEEN_WORDS = r"(?<=\S)\n(?=\w)|(?<=[\w.,;:!?]) (?=\w)"
_PLACES = re.compile(_BETWEEN_WORDS)
_PLACES_WITH_PUNCTUATION = re.compile(rf"{_BETWEEN_WORDS}|(?<=[^\W_])(?=[^\w\s\uf8f0-\uf8f7])")


def cut(
    text: str,
    encode: Callable[[str], Sequence[int]],
    *,
    at_punctuation: bool,
    longest_token: int = 0,
    searched: int | None = None,
) -> Iterator[str]:
    """Yield a text in pieces of about ``PIECE_CHARS`` characters; encoded one by one they give the tokens of the whole.

    A stretch without a place for a cut stays one piece, however long it is; where ``searched`` is given, so does what
    follows as many characters without one. ``encode`` must be what encodes the pieces; ``longest_token`` is in
    characters. ``at_punctuation`` cuts between a letter and a punctuation mark too: for tokenizers that always split
    there. Nothing is cut before a character that guards special tokens (``chat.special_tokens.GUARDS``).
    """
    places = _PLACES_WITH_PUNCTUATION if at_punctuation else _PLACES
    window = max(_WINDOW, longest_token)
    start = 0
    while len(text) - start > 2 * PIECE_CHARS:
        end = len(text) if searched is None else min(start + PIECE_CHARS + searched, len(text))
        nearest = islice(_found(text, start + PIECE_CHARS, end, places), _TRIES)
        found = next((ends for place in nearest if (ends := _cut(text, place, window, encode)) is not None), None)
        if found is None:
            break
        end, following = found
        yield text[start:end]
        start = following
    yield text[start:]


def _cut(
    text: str, place: re.Match[str], window: int, encode: Callable[[str], Sequence[int]]
) -> tuple[int, int] | None:
    """Return where the piece before a place ends and where the one after it begins; None where it cannot be cut."""
    end = place.end() if place[0] == "\n" else place.start()
    before, after = text[max(end - window, 0) : end], text[end : end + window]
    whole, first = list(encode(before + after)), list(encode(before))
    spaces = (0, 1) if place[0] == " " else (0,)  # 1: a tokenizer that puts a space before every text
    for dropped in spaces:
        second = list(encode(after[dropped:]))
        # a tokenizer that drops unknown text joins what is on either side of it, however far apart
        if first and second and whole == first + second:
            return end, end + dropped
    return None


def _found(text: str, least: int, most: int, places: re.Pattern[str]) -> Iterator[re.Match[str]]:
    """Yield the places between two characters; a search of all at once would stop other threads."""
    for start in range(least, most, _SEARCHED):
        yield from places.finditer(text, start, min(start + _SEARCHED, most))
