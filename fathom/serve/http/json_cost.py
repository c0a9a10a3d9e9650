"""What it takes to parse a JSON text, estimated from its bytes in one pass that leaves the interpreter to others.

Empty lists of two characters become objects of a hundred bytes, and the parser keeps the interpreter from all other
requests until it is done: the length of a body alone bounds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_Bytes = np.ndarray[Any, np.dtype[np.uint8]]
_CHUNK = 1 << 20
_VALUE, _CONTAINER, _KEY = 64, 120, 140
"""Bytes of a value, in addition of a list or object, and of a key; measured on pydantic's parser."""
_VALUE_NS, _LIST_NS, _OBJECT_NS, _KEY_NS = 100, 400, 450, 200
_ESCAPE_NS, _FOREIGN_NS = 30, 2
"""Nanoseconds of the parser for the same, for an escape in a string, and for a byte that is not ASCII."""


@dataclass(frozen=True, slots=True)
class ParseCost:
    """Bytes that the parsed values, lists, objects and keys take, their characters aside; nanoseconds of the parser."""

    nbytes: int
    nanoseconds: int


def parse_cost(content: bytes | bytearray) -> ParseCost:
    """Return about what parsing ``content`` takes."""
    commas = lists = objects = keys = escapes = foreign = 0
    inside = escaped = 0
    for start in range(0, len(content), _CHUNK):
        chars = np.frombuffer(content, dtype=np.uint8, count=min(_CHUNK, len(content) - start), offset=start)
        marks, escaped = _quotes(chars, escaped)
        parity = np.bitwise_xor.accumulate(marks) ^ inside
        inside = int(parity[-1])
        text = chars[parity == 0]
        commas += _count(text, ",")
        lists += _count(text, "[")
        objects += _count(text, "{")
        keys += _count(text, ":")
        escapes += _count(chars, "\\")
        foreign += int(np.count_nonzero(chars > 127))
    values = commas + lists + objects
    return ParseCost(
        _VALUE * values + _CONTAINER * (lists + objects) + _KEY * keys,
        _VALUE_NS * values
        + _LIST_NS * lists
        + _OBJECT_NS * objects
        + _KEY_NS * keys
        + _ESCAPE_NS * escapes
        + _FOREIGN_NS * foreign,
    )


def _count(chars: _Bytes, char: str) -> int:
    return int(np.count_nonzero(chars == ord(char)))


def _quotes(chars: _Bytes, escaped: int) -> tuple[_Bytes, int]:
    """Return 1 where a string begins or ends: at quotes after an even number of backslashes.

    ``escaped`` is 1 where an odd number of backslashes precedes ``chars``; the same of what follows is returned.
    """
    marks: _Bytes = (chars == ord('"')).astype(np.uint8)
    slashes = chars == ord("\\")
    if not escaped and not slashes.any():
        return marks, 0
    positions = np.arange(len(chars), dtype=np.int32)
    plain = np.maximum.accumulate(np.where(slashes, np.int32(-1 - escaped), positions))
    before = np.concatenate((np.array([-1 - escaped], dtype=np.int32), plain))
    quotes = np.flatnonzero(marks)
    marks[quotes] = (quotes - 1 - before[quotes]) % 2 == 0
    return marks, int(len(chars) - 1 - before[-1]) % 2
