"""Files read as streams of bytes, unpacked on the way: gzip, bzip2, xz and Zstandard, with limits against bombs."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fathom.data import left_out
from fathom.errors import DataError, explain_os_error
from fathom.extras import install_extra
from fathom.files import open_regular, pointer_remedy

_MIB = 1_048_576
_CHUNK = 65_536
_ZSTD_INPUT = 1_024
"""Bytes given to the Zstandard decoder at once: its output has no bound of its own, and 4 bytes may say 128 KiB."""
_MAX_ZSTD_WINDOW = 1 << 31
_MAX_XZ_MEMORY = 1 << 30

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLimits:
    """What one file may hold.

    ``max_record_bytes`` bounds one line or one element of an array; a longer one is passed over. ``max_ratio`` is how
    many times its compressed size a file may unpack to, once it is past ``ratio_after_bytes``;
    ``max_unpacked_bytes`` is how much it may unpack to in all. Both end the file.
    """

    max_record_bytes: int = 64 * _MIB
    max_ratio: int = 400
    ratio_after_bytes: int = 64 * _MIB
    max_unpacked_bytes: int = 1_048_576 * _MIB


DEFAULT_LIMITS = ReadLimits()


class UnusableFileError(DataError):
    """One file cannot be used, which says nothing of the files beside it; ``reason`` is one of ``left_out``."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class DamagedFileError(UnusableFileError):
    """A file ends too early or cannot be read from some place on; what came before it was given."""

    def __init__(self, message: str, reason: str = left_out.DAMAGED) -> None:
        super().__init__(message, reason)


class _Decompressor(Protocol):
    def chunks(self, data: bytes) -> Iterator[bytes]:
        """Yield what ``data`` unpacks to, in pieces of bounded size."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the input may end here."""
        ...


def compression(path: Path) -> str:
    """Return the last suffix in lower case if it names a compression, else an empty text."""
    suffix = path.suffix.lower()
    return suffix if suffix in COMPRESSIONS else ""


def inner_suffix(path: Path) -> str:
    """Return the suffix of what a file holds, in lower case: ``.jsonl`` of ``a.JSONL.gz``."""
    return Path(path.stem).suffix.lower() if compression(path) else path.suffix.lower()


def read_chunks(path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> Iterator[bytes]:
    """Yield the content of a file in pieces, unpacked where its suffix says that it is compressed.

    Raises:
        DataError: a library is missing, or the file unpacks to more than ``limits`` allow.
        UnusableFileError: the file cannot be opened or read, or is a pointer of Git LFS.
        DamagedFileError: it ends within compressed data or is not what its suffix says; all before it was yielded.
    """
    suffix = compression(path)
    decoder = _decoder(path, suffix) if suffix else None
    consumed = produced = 0
    try:
        with open_regular(path) as file:
            while data := file.read(_CHUNK):
                if not consumed:
                    check_pointer(path, data)
                consumed += len(data)
                if decoder is None:
                    yield data
                    continue
                for chunk in decoder.chunks(data):
                    produced += len(chunk)
                    _check_size(path, consumed, produced, limits)
                    yield chunk
    except OSError as error:
        if isinstance(decoder, MemberDecoder) and error.errno is None:  # bz2 reports bad data so
            raise _damaged(path, suffix, error) from None
        raise unreadable(path, error) from None
    except (zlib.error, lzma.LZMAError, EOFError, ValueError, _zstd_error()) as error:
        raise _damaged(path, suffix, error) from None
    if decoder is not None and not decoder.complete:
        raise DamagedFileError(f"{path}: cut short, its {suffix} data ends too early; get the file again")


def check_pointer(path: Path, head: bytes) -> None:
    """Refuse a file of which Git LFS left the pointer only, as in a clone without its data."""
    pointer = pointer_remedy(head)
    if pointer:
        raise UnusableFileError(f"{path}: {pointer}", left_out.POINTERS)


def unreadable(path: Path, error: OSError) -> UnusableFileError:
    """Return what to raise for a file that the system does not give."""
    return UnusableFileError(f"{path}: cannot be read, {explain_os_error(error)}", left_out.UNREADABLE)


def _check_size(path: Path, consumed: int, produced: int, limits: ReadLimits) -> None:
    remedy = "if its content is wanted, unpack it and name the unpacked file, else remove it"
    if produced > limits.max_unpacked_bytes:
        raise DataError(
            f"{path}: unpacks to more than {limits.max_unpacked_bytes:,} bytes (max_unpacked_bytes); {remedy}"
        )
    if produced > limits.ratio_after_bytes and produced > limits.max_ratio * consumed:
        raise DataError(
            f"{path}: unpacks to over {limits.max_ratio} times its size (max_ratio), as a decompression bomb does; "
            f"{remedy}"
        )


def _damaged(path: Path, suffix: str, error: Exception) -> DamagedFileError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DamagedFileError(f"{path}: not readable as {suffix} ({reason}); get the file again")


class MemberDecoder:
    """Decoder of one or more members of gzip, bzip2 or xz, which bound their own output."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._current: Any = None

    @property
    def complete(self) -> bool:
        """Whether the input may end here."""
        return self._current is None

    def chunks(self, data: bytes) -> Iterator[bytes]:
        """Yield what ``data`` unpacks to, in pieces of bounded size."""
        while data:
            if self._current is None:
                if not data.strip(b"\0"):
                    return  # zeros after a member are padding
                self._current = _member(self._suffix)
            yield from self._member_chunks(data)
            data = b""
            if self._current.eof:
                data, self._current = self._current.unused_data, None

    def _member_chunks(self, data: bytes) -> Iterator[bytes]:
        while not self._current.eof:
            chunk = self._current.decompress(data, _CHUNK)
            if chunk:
                yield chunk
            data = self._current.unconsumed_tail if self._suffix == ".gz" else b""
            if not data and len(chunk) < _CHUNK:
                return


def _member(suffix: str) -> Any:
    match suffix:
        case ".gz":
            return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        case ".bz2":
            return bz2.BZ2Decompressor()
        case _:
            return lzma.LZMADecompressor(memlimit=_MAX_XZ_MEMORY)


class _Frames:
    """Decoder of one or more Zstandard frames."""

    def __init__(self, library: Any) -> None:
        self._decompressor = library.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW)
        self._current: Any = None

    @property
    def complete(self) -> bool:
        return self._current is None

    def chunks(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZSTD_INPUT):
            part = data[start : start + _ZSTD_INPUT]
            while part:
                self._current = self._current or self._decompressor.decompressobj()
                if chunk := self._current.decompress(part):
                    yield chunk
                part = b""
                if self._current.eof:
                    part, self._current = self._current.unused_data, None


def _decoder(path: Path, suffix: str) -> _Decompressor:
    if suffix != ".zst":
        return MemberDecoder(suffix)
    try:
        import zstandard
    except ImportError:
        raise DataError(f"{path}: .zst needs zstandard, which is not installed; {install_extra('data')}") from None
    return _Frames(zstandard)


def _zstd_error() -> type[Exception]:
    try:
        import zstandard
    except ImportError:
        return zlib.error
    return zstandard.ZstdError
