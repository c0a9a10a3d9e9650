"""Text files as streams: their encoding, their lines, or all of them at once."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from fathom.data import left_out
from fathom.data.records.compressed import DEFAULT_LIMITS, DamagedFileError, ReadLimits, UnusableFileError, read_chunks

_BINARY_PEEK = 65_536


def utf8_chunks(path: Path, limits: ReadLimits = DEFAULT_LIMITS, encoding: str | None = None) -> Iterator[bytes]:
    """Yield the content of a text file as UTF-8 without a byte order mark.

    UTF-16 and UTF-32 are known by their mark and transcoded, and so is everything else where an ``encoding`` is
    given; without one it is passed on as it is. Errors as ``read_chunks``, and ``DamagedFileError`` for what is not
    in the encoding.
    """
    chunks = read_chunks(path, limits)
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= 4:
            break
    marked = _marked_encoding(head)
    if head.startswith(codecs.BOM_UTF8) or not (marked or encoding):
        yield head.removeprefix(codecs.BOM_UTF8)
        yield from chunks
        return
    chosen = marked or encoding or "utf-8"
    decoder = codecs.getincrementaldecoder(chosen)()
    try:
        yield decoder.decode(head).encode()
        for chunk in chunks:
            yield decoder.decode(chunk).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError:
        said = "as its first bytes say" if marked else "as its source says"
        raise DamagedFileError(f"{path}: not {chosen} {said}; save it as UTF-8", left_out.ENCODING) from None


def _marked_encoding(head: bytes) -> str | None:
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return None


def read_text(path: Path, limits: ReadLimits = DEFAULT_LIMITS, encoding: str | None = None) -> tuple[str, str]:
    """Read a text file whole; returns its text, and what is wrong with its end or an empty text.

    Raises:
        DataError: as ``read_chunks``.
        UnusableFileError: it cannot be read, is empty, is binary, or not in its encoding (``utf8_chunks``).
    """
    content, problem = bytearray(), ""
    try:
        for chunk in utf8_chunks(path, limits, encoding):
            if len(content) < _BINARY_PEEK and b"\0" in chunk:
                message = f"{path}: holds binary data; remove it or save it as UTF-8 text"
                raise UnusableFileError(message, left_out.BINARY)
            content += chunk
    except DamagedFileError as error:
        if not content.strip() or error.reason == left_out.ENCODING:
            raise
        problem = str(error)
    if not content.strip():
        raise UnusableFileError(f"{path}: empty; remove it or add text", left_out.EMPTY)
    try:
        return content.decode(), problem
    except UnicodeDecodeError as error:
        if problem and error.end == len(content) and error.reason == "unexpected end of data":
            return content[: error.start].decode(), problem
        message = f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8, or name its encoding in the source"
        raise UnusableFileError(message, left_out.ENCODING) from None


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
