"""Records of data files, one by one: JSON lines, JSON arrays, Parquet, CSV and TSV, compressed or not.

A record that cannot be read is yielded as a ``BadRecord``, so that one bad line is not the end of a file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fathom.data.records.compressed import (
    COMPRESSIONS,
    DEFAULT_LIMITS,
    DamagedFileError,
    ReadLimits,
    compression,
    inner_suffix,
)
from fathom.data.records.json_stream import json_values
from fathom.data.records.parquet import parquet_rows
from fathom.data.records.text_stream import lines, utf8_chunks
from fathom.errors import DataError

_LINES = (".jsonl", ".ndjson")
_TABLES = {".csv": ",", ".tsv": "\t"}
RECORD_SUFFIXES = (*_LINES, ".json", ".parquet", *_TABLES)
"""What ``read_records`` reads, in any case; all but Parquet also with a suffix of ``COMPRESSIONS`` after it."""
_PEEK_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Record:
    """One record and where it stands: ``FILE, line 3`` or ``FILE, row 3``, both counted from 1."""

    place: str
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that could not be read; ``sentence`` says why and what to do, without the place."""

    place: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.place}: {self.sentence}"


def holds_records(path: Path) -> bool:
    """Whether a file's suffix is one that ``read_records`` reads."""
    return inner_suffix(path) in RECORD_SUFFIXES


def read_records(
    path: Path,
    limits: ReadLimits = DEFAULT_LIMITS,
    *,
    columns: Sequence[str] | None = None,
    encoding: str | None = None,
) -> Iterator[Record | BadRecord]:
    """Yield the records of a file in their order; memory is bounded by the largest one.

    ``.jsonl`` and ``.ndjson`` have an object on each line; ``.json`` an array of objects, one object, or objects that
    follow each other; a file of lines that starts as an array is read as one. Values of Parquet are Python's, those of
    CSV and TSV texts by the names in the first line. Empty lines are passed over. A line that is no JSON object, not
    UTF-8 or above ``limits.max_record_bytes`` is a ``BadRecord``; a file that ends too early gives what is before, and
    one. ``columns`` are those read of Parquet, the others staying on the disk; ``encoding`` is that of text which is
    not UTF-8.

    Raises:
        DataError: the file has another suffix, needs a library that is not installed, or unpacks to more than
            ``limits`` allow.
        UnusableFileError: it cannot be opened.
    """
    suffix = inner_suffix(path)
    if suffix not in RECORD_SUFFIXES:
        raise DataError(f"{path}: not a data file; give one of {', '.join(RECORD_SUFFIXES)}")
    if suffix == ".parquet":
        yield from _parquet_records(path, limits, columns)
    elif suffix in _TABLES:
        yield from _table_records(path, _TABLES[suffix], limits, encoding)
    elif _by_lines(path, suffix, limits, encoding):
        yield from _line_records(path, limits, encoding)
    else:
        yield from _value_records(path, limits, encoding)


def _by_lines(path: Path, suffix: str, limits: ReadLimits, encoding: str | None) -> bool:
    """Whether a JSON file has a record on each line, as its first bytes show."""
    head = b""
    try:
        for chunk in utf8_chunks(path, limits, encoding):
            head += chunk
            if len(head) >= _PEEK_BYTES:
                break
    except DamagedFileError:
        pass
    start = head.lstrip()
    if start.startswith(b"["):
        return suffix in _LINES and not start[1:].lstrip().startswith((b"{", b"]"))
    return suffix in _LINES or _objects_on_lines(start)


def _objects_on_lines(head: bytes) -> bool:
    """Whether the first object ends on its line, or, where it is faulty or long, a later line is a whole object."""
    try:
        _, end = json.JSONDecoder().raw_decode(head.decode(errors="replace"))
        return b"\n" not in head[:end]
    except (ValueError, RecursionError):
        return any(line.startswith(b"{") and _is_object(line) for line in head.split(b"\n"))


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _line_records(path: Path, limits: ReadLimits, encoding: str | None) -> Iterator[Record | BadRecord]:
    number = 0
    try:
        for number, line in lines(utf8_chunks(path, limits, encoding), limits.max_record_bytes):
            if line is None or line.strip():
                yield _parsed(f"{path}, line {number}", line, limits)
    except DamagedFileError as error:
        yield _damage(path, f"{path}, line {number + 1}", error)


def _value_records(path: Path, limits: ReadLimits, encoding: str | None) -> Iterator[Record | BadRecord]:
    number = 0
    try:
        for number, value in enumerate(
            json_values(utf8_chunks(path, limits, encoding), limits.max_record_bytes), start=1
        ):
            if value == b"":
                yield BadRecord(f"{path}, row {number}", "the array has no end; get the file again or close it with ]")
            else:
                yield _parsed(f"{path}, row {number}", value, limits)
    except DamagedFileError as error:
        yield _damage(path, f"{path}, row {number + 1}", error)


def _parsed(place: str, text: bytes | None, limits: ReadLimits) -> Record | BadRecord:
    if text is None:
        return BadRecord(place, f"longer than {limits.max_record_bytes:,} bytes; shorten or remove it")
    try:
        value = json.loads(text.decode())
    except UnicodeDecodeError as error:
        return BadRecord(place, f"not UTF-8 at byte {error.start}; save it as UTF-8")
    except RecursionError:
        return BadRecord(place, "nested too deeply; flatten or remove it")
    except ValueError as error:
        return BadRecord(place, f"not JSON ({error}); fix or remove it")
    if not isinstance(value, dict):
        return BadRecord(place, f"no JSON object but {_kind(value)}; fix or remove it")
    return Record(place, value)


def _kind(value: Any) -> str:
    kinds = {list: "an array", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _damage(path: Path, place: str, error: DamagedFileError) -> BadRecord:
    return BadRecord(place, str(error).removeprefix(f"{path}: "))


def _parquet_records(path: Path, limits: ReadLimits, columns: Sequence[str] | None) -> Iterator[Record | BadRecord]:
    if compression(path):
        raise DataError(f"{path}: Parquet is compressed inside; unpack it ({', '.join(COMPRESSIONS)} are for text)")
    number = 0
    try:
        for number, row in enumerate(parquet_rows(path, limits, columns), start=1):
            place = f"{path}, row {number}"
            if isinstance(row, str):
                yield BadRecord(place, row)
                continue
            longest = max((len(value) for value in row.values() if isinstance(value, str | bytes)), default=0)
            yield Record(place, row) if longest <= limits.max_record_bytes else _parsed(place, None, limits)
    except DamagedFileError as error:
        yield _damage(path, f"{path}, row {number + 1}", error)


def _table_records(
    path: Path, delimiter: str, limits: ReadLimits, encoding: str | None
) -> Iterator[Record | BadRecord]:
    csv.field_size_limit(max(csv.field_size_limit(), limits.max_record_bytes))
    rows = csv.reader(_table_lines(path, limits, encoding), delimiter=delimiter)
    number = 0
    try:
        names = next(rows, [])
        for row in rows:
            if row:
                number += 1
                yield _table_row(f"{path}, row {number}", names, row)
    except DamagedFileError as error:
        yield _damage(path, f"{path}, row {number + 1}", error)
    except csv.Error as error:
        yield BadRecord(f"{path}, row {number + 1}", f"not readable as CSV ({error}); fix its quotation marks")


def _table_lines(path: Path, limits: ReadLimits, encoding: str | None) -> Iterator[str]:
    """Yield lines for the csv module, which joins those within quotation marks."""
    for number, line in lines(utf8_chunks(path, limits, encoding), limits.max_record_bytes):
        if line is None:
            raise DamagedFileError(
                f"{path}: line {number} is longer than {limits.max_record_bytes:,} bytes; shorten it"
            )
        yield line.decode(errors="surrogateescape") + "\n"


def _table_row(place: str, names: list[str], row: list[str]) -> Record | BadRecord:
    if len(row) != len(names):
        return BadRecord(place, f"has {len(row)} values, and the first line {len(names)} names; fix or remove it")
    if any("\udc80" <= c <= "\udcff" for text in row if not text.isascii() for c in text):
        return BadRecord(place, "not UTF-8; save the file as UTF-8")
    return Record(place, dict(zip(names, row, strict=True)))
