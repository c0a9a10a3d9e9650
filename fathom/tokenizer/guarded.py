"""Where the special tokens of an encoded text stand in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import tokenizers


@dataclass(frozen=True, slots=True)
class SpecialSpan:
    """A special token in a text: the part that became it, spaces around it included, and where it itself begins."""

    token_id: int
    start: int
    end: int
    begins: int


def special_spans(
    text: str, encoding: tokenizers.Encoding, names: Mapping[int, str], unknown_id: int | None
) -> Iterator[SpecialSpan | None]:
    """Yield the span of each special token of an encoding, in order; None for one that the text does not spell.

    ``names`` are the special tokens by id. An unknown token (``unknown_id``) that the text does not spell is none: it
    stands for text that the vocabulary lacks.
    """
    for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        name = names.get(token_id)
        if name is None:
            continue
        raw = text[start:end]
        begins = raw.find(name)
        if begins >= 0 and not raw.replace(name, "", 1).strip():
            yield SpecialSpan(token_id, start, end, start + begins)
        elif token_id != unknown_id:
            yield None
