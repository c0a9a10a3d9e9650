"""Rows of Parquet files, read batch by batch with pyarrow (extra ``data``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fathom.data.records.compressed import DEFAULT_LIMITS, DamagedFileError, ReadLimits, check_pointer, unreadable
from fathom.errors import DataError
from fathom.extras import install_extra
from fathom.files import open_regular

_BATCH_ROWS = 16
"""Few, since one long value of a dictionary may stand in every row."""


def parquet_columns(path: Path) -> list[str]:
    """Return the names of the columns; errors as ``parquet_rows``."""
    with _opened(path) as file:
        names: list[str] = file.schema_arrow.names
    return names


def parquet_rows(
    path: Path, limits: ReadLimits = DEFAULT_LIMITS, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any] | str]:
    """Yield each row as its values by column, of all columns or the given ones; ``_BATCH_ROWS`` are in memory at once.

    In place of a row with a value that Python has no form of, such as text that is not UTF-8, comes what is wrong.

    Raises:
        DataError: pyarrow is missing, or the file unpacks to more than ``limits`` allow.
        UnusableFileError: the file cannot be opened.
        DamagedFileError: it is no Parquet, or damaged from some row on; all rows before were yielded.
    """
    with _opened(path) as file:
        _check_size(path, file.metadata, limits)
        batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False)
        while True:
            try:
                batch = next(batches, None)
            except _errors() as error:
                raise _damaged(path, error) from None
            if batch is None:
                return
            yield from _rows(batch)


def _rows(batch: Any) -> Sequence[dict[str, Any] | str]:
    try:
        rows: list[dict[str, Any] | str] = batch.to_pylist()
    except _errors():
        if batch.num_rows > 1:
            return [row for index in range(batch.num_rows) for row in _rows(batch.slice(index, 1))]
        return [_unreadable_value(batch)]
    return rows


def _unreadable_value(row: Any) -> str:
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            column.to_pylist()
        except _errors() as error:
            return f"{name!r} is not readable ({_reason(error)}); correct or remove the row"
    return "not readable; remove the row"


def _errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises for damaged data and for values without a Python form."""
    import pyarrow

    return OSError, ValueError, OverflowError, pyarrow.ArrowException


def _opened(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path}: Parquet needs pyarrow, which is not installed; {install_extra('data')}") from None
    try:
        with open_regular(path) as file:
            check_pointer(path, file.read(64))
    except OSError as error:
        raise unreadable(path, error) from None
    try:
        return parquet.ParquetFile(path, memory_map=False)
    except _errors() as error:
        raise _damaged(path, error) from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _damaged(path: Path, error: Exception) -> DamagedFileError:
    return DamagedFileError(f"{path}: not readable as Parquet ({_reason(error)}); get the file again")


def _check_size(path: Path, metadata: Any, limits: ReadLimits) -> None:
    """Refuse a file that says it unpacks to an absurd size, before a page of it is read.

    The sizes are those of row groups: pyarrow ends the process where it is asked for those of a damaged column.
    """
    total = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    if total > limits.ratio_after_bytes and total > limits.max_ratio * path.stat().st_size:
        raise DataError(
            f"{path}: unpacks to over {limits.max_ratio} times its size (max_ratio), as a decompression bomb does; "
            "remove it, or write it anew without compression"
        )
    if total > limits.max_unpacked_bytes:
        raise DataError(
            f"{path}: unpacks to more than {limits.max_unpacked_bytes:,} bytes (max_unpacked_bytes); cut it into parts"
        )
