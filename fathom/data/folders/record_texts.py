"""The texts of a data file's records: which column holds them, and what is said of records without."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fathom.data import left_out
from fathom.data.left_out import LeftOutReport
from fathom.data.records import BadRecord, Record, read_records
from fathom.data.records.compressed import UnusableFileError, inner_suffix
from fathom.data.records.parquet import parquet_columns
from fathom.spec.data import FolderSource

TEXT_COLUMNS = ("text", "content", "raw_content", "document", "contents", "page_content", "article", "passage", "code")
"""Columns that hold a data set's text, the first of them that there is; a source's ``text_column`` goes before."""
_PROBED_RECORDS = 100
_LISTED_COLUMNS = 12


def record_texts(path: Path, source: FolderSource, report: LeftOutReport) -> Iterator[str]:
    """Yield the text of each record of a data file; ``report`` counts the records that have none.

    Raises:
        UnusableFileError: no record could be read, or none of the first ``_PROBED_RECORDS`` has a column of text.
        DataError: as ``read_records``.
    """
    columns = _parquet_column(path, source) if inner_suffix(path) == ".parquet" else None
    problems, found, first = LeftOutReport(), False, None
    try:
        for seen, record in enumerate(read_records(path, columns=columns, encoding=source.encoding)):
            if isinstance(record, BadRecord):
                problems.add(left_out.BAD_RECORDS, str(record))
                continue
            column = _column(record.value, source)
            found = found or column is not None
            first = first or record
            if not found and seen >= _PROBED_RECORDS:
                break
            text = None if column is None else _text(record.value[column])
            if text is None:
                problems.add(left_out.NO_TEXT, f"{record.place}: {_why_not(record, column)}")
            else:
                yield text
    finally:
        if found:
            report.merge(problems)
    if found:
        return
    if first is not None:
        raise _no_column(path, source, list(first.value))
    if problems.count:
        raise UnusableFileError(problems.reasons[left_out.BAD_RECORDS].examples[0], left_out.DAMAGED)
    raise UnusableFileError(f"{path}: holds no record; remove it or add some", left_out.EMPTY)


def _column(names: Iterable[str], source: FolderSource) -> str | None:
    wanted = (source.text_column,) if source.text_column else TEXT_COLUMNS
    return next((name for name in wanted if name in names), None)


def _parquet_column(path: Path, source: FolderSource) -> list[str]:
    names = parquet_columns(path)
    column = _column(names, source)
    if column is None:
        raise _no_column(path, source, names)
    return [column]


def _no_column(path: Path, source: FolderSource, names: Sequence[str]) -> UnusableFileError:
    wanted = repr(source.text_column) if source.text_column else f"of text ({', '.join(TEXT_COLUMNS)})"
    remedy = "name the one that holds text with --text-column, or as text_column of the source"
    return UnusableFileError(f"{path}: no column {wanted} among {_listed(names)}; {remedy}", left_out.NO_COLUMN)


def _listed(names: Sequence[str]) -> str:
    listed = ", ".join(map(repr, names[:_LISTED_COLUMNS])) + (", ..." if len(names) > _LISTED_COLUMNS else "")
    return listed or "none"


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return value if isinstance(value, str) else None


def _why_not(record: Record, column: str | None) -> str:
    if column is None:
        return f"no column of text among {_listed(list(record.value))}; add one or remove the record"
    value = record.value[column]
    kind = "null" if value is None else f"no text but {type(value).__name__}"
    return f"{column!r} is {kind}; correct or remove the record"
