"""The JSON values of a stream of bytes one by one, in memory bounded by the largest of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_OUTSIDE = re.compile(rb'["\[\]{},]')
_IN_STRING = re.compile(rb'\\.|"', re.DOTALL)
_LINE_END = re.compile(rb"\n")
_NOT_SPACE = re.compile(rb"[^ \t\r\n]")
_READ = 65_536


def json_values(chunks: Iterable[bytes], max_bytes: int) -> Iterator[bytes | None]:
    """Yield the text of each value: the elements of an array, or values that follow each other.

    The values are cut where brackets balance and not checked otherwise, so that a faulty one does not take the next
    with it. None stands for a value above ``max_bytes``. A value or an array without its end gives what there is of
    it, and an empty text where nothing is left.
    """
    reader = _Reader(iter(chunks))
    in_array = False
    while first := reader.skip_space():
        if first == b"[" and not in_array:
            in_array = True
            reader.position += 1
            if reader.skip_space() != b"]":
                continue
            first = b"]"
        if first == b"]" and in_array:
            in_array = False
            reader.position += 1
            continue
        value, end = _next_value(reader, max_bytes, _LINE_END if not in_array and first != b"{" else _OUTSIDE, in_array)
        yield value
        if in_array and end == b",":
            reader.position += 1
    if in_array:
        yield b""


class _Reader:
    """A buffer over chunks of bytes; what lies before ``position`` is done with."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self.buffer = b""
        self.position = 0

    def more(self) -> bool:
        """Drop what is done with and append to the rest; False at the end of the stream."""
        parts = [self.buffer[self.position :]]
        least = max(_READ, len(parts[0]))  # twice as much each time, so that a long value is copied a few times only
        self.buffer, self.position = b"", 0
        gained = 0
        try:
            while gained < least and (chunk := next(self._chunks, None)) is not None:
                parts.append(chunk)
                gained += len(chunk)
        finally:
            self.buffer = b"".join(parts)
        return gained > 0

    def skip_space(self) -> bytes:
        """Pass white space; returns the first byte after it, or nothing at the end."""
        while True:
            found = _NOT_SPACE.search(self.buffer, self.position)
            if found:
                self.position = found.start()
                return found[0]
            self.position = len(self.buffer)
            if not self.more():
                return b""


def _next_value(
    reader: _Reader, max_bytes: int, outside: re.Pattern[bytes], in_array: bool
) -> tuple[bytes | None, bytes]:
    """Take the value that starts at the reader's position; returns it and the byte that ended it, which is left."""
    scanned, depth, in_string, overlong = 0, 0, False, False
    while True:
        found = (_IN_STRING if in_string else outside).search(reader.buffer, reader.position + scanned)
        if not found:
            held_back = in_string and reader.buffer.endswith(b"\\", reader.position + scanned)
            scanned = len(reader.buffer) - reader.position - held_back
            if scanned > max_bytes:
                overlong = True
                reader.position, scanned = reader.position + scanned, 0
            if not reader.more():
                value, reader.position = reader.buffer[reader.position :], len(reader.buffer)
                return None if overlong else value, b""
            continue
        scanned = found.end() - reader.position
        token = found[0]
        if in_string:
            in_string = token != b'"'
        elif token == b'"':
            in_string = True
        elif token in b"[{":
            depth += 1
        elif depth == 0 and token in (b",", b"]", b"\n"):
            if token == b"\n" or in_array:
                return _taken(reader, found.start(), max_bytes, overlong), token
        elif token in b"]}":
            depth = max(0, depth - 1)
            if depth == 0 and not in_array:
                return _taken(reader, found.end(), max_bytes, overlong), token


def _taken(reader: _Reader, end: int, max_bytes: int, overlong: bool) -> bytes | None:
    value = None if overlong or end - reader.position > max_bytes else reader.buffer[reader.position : end]
    reader.position = end
    return value
