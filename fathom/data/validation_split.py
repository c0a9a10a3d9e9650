"""Which examples of a set are held out: by the hash of their text, so that equal ones are on one side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fathom.errors import DataError

FEWEST = 20
"""Unlike examples that a set must have for some of them to be held out unasked."""
SHARE = 0.1
MOST = 64
"""Examples that are held out unasked at most: measuring them costs time."""


def text_key(value: Any) -> int:
    """Return a hash of plain values, 63 bits, in which neither spaces at the ends of texts nor the order of keys count.

    It is a function of the text alone: whatever the tokenizer, the same examples are held out. Values that are nested
    too deeply to be compared have one key.
    """
    try:
        text = json.dumps(_stripped(value), sort_keys=True, default=str)
    except RecursionError:
        return 0
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def choose_held_out(keys: Iterable[int], fraction: float | None) -> frozenset[int]:
    """Return the keys whose examples are held out: those that come first by rising hash.

    ``fraction`` of the unlike examples, one at least; None takes ``SHARE`` of ``FEWEST`` or more, and at most ``MOST``.

    Raises:
        DataError: none would be left to learn from.
    """
    ranked = sorted(set(keys))
    if fraction is None:
        count = min(MOST, round(SHARE * len(ranked))) if len(ranked) >= FEWEST else 0
    else:
        count = max(1, round(fraction * len(ranked))) if fraction else 0
    if count and count >= len(ranked):
        raise DataError(
            f"validation.fraction: {fraction} holds out all {len(ranked)} different examples; give more data, a lower "
            "fraction, or 0 to hold out none"
        )
    return frozenset(ranked[:count])


def _stripped(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, Mapping):
        return {str(name): _stripped(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_stripped(item) for item in value]
    return value
