"""Text files as streams: their encoding, their lines, or all of them at once."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from fathom.data.compressed import DEFAULT_LIMITS, DamagedFileError, ReadLimits, read_chunks
from fathom.errors import DataError

_BINARY_PEEK = 65_536


def utf8_chunks(path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> Iterator[bytes]:
    """Yield the content of a text file as UTF-8 without a byte order mark.

    UTF-16 and UTF-32 are known by their mark and transcoded; anything else is passed on as it is.
    Errors as ``read_chunks``, and ``DamagedFileError`` for UTF-16 or UTF-32 that is none.
    """
    chunks = read_chunks(path, limits)
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= 4:
            break
    encoding = _marked_encoding(head)
    if encoding is None:
        yield head.removeprefix(codecs.BOM_UTF8)
        yield from chunks
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        yield decoder.decode(head).encode()
        for chunk in chunks:
            yield decoder.decode(chunk).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError:
        raise DamagedFileError(f"{path}: not {encoding.upper()} as its first bytes say; save it as UTF-8") from None


def _marked_encoding(head: bytes) -> str | None:
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    return "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else None


def read_text(path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> tuple[str, str]:
    """Read a text file whole; returns its text, and what is wrong with its end or an empty text.

    Raises:
        DataError: it cannot be read, is empty, is binary, or is not UTF-8 (nor UTF-16 or UTF-32 with a mark).
    """
    content, problem = bytearray(), ""
    try:
        for chunk in utf8_chunks(path, limits):
            if len(content) < _BINARY_PEEK and b"\0" in chunk:
                raise DataError(f"{path}: holds binary data; remove it or save it as UTF-8 text")
            content += chunk
    except DamagedFileError as error:
        if not content.strip():
            raise
        problem = str(error)
    if not content.strip():
        raise DataError(f"{path}: empty; remove it or add text")
    try:
        return content.decode(), problem
    except UnicodeDecodeError as error:
        if problem and error.end == len(content) and error.reason == "unexpected end of data":
            return content[: error.start].decode(), problem
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None


def lines(chunks: Iterable[bytes], max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield number (from 1) and content of each line, without its end; None in place of one above ``max_bytes``.

    A damaged end drops the line that it cuts, then raises ``DamagedFileError`` again.
    """
    number, pending, overlong = 1, bytearray(), False
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            pending += part
            yield number, None if overlong or len(pending) > max_bytes else bytes(pending)
            number, overlong = number + 1, False
            pending.clear()
        pending += rest
        if len(pending) > max_bytes:
            overlong = True
            pending.clear()
    if pending or overlong:
        yield number, None if overlong else bytes(pending)
