"""Rows of Parquet files, read batch by batch with pyarrow (extra ``data``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fathom.data.compressed import DEFAULT_LIMITS, DamagedFileError, ReadLimits, check_pointer, unreadable
from fathom.errors import DataError

_BATCH_ROWS = 16
"""Few, since one long value of a dictionary may stand in every row."""


def parquet_columns(path: Path) -> list[str]:
    """Return the names of the columns; errors as ``parquet_rows``."""
    with _opened(path) as file:
        names: list[str] = file.schema_arrow.names
    return names


def parquet_rows(
    path: Path, limits: ReadLimits = DEFAULT_LIMITS, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield each row as its values by column, of all columns or the given ones; ``_BATCH_ROWS`` are in memory at once.

    Raises:
        DataError: pyarrow is missing, or a column unpacks to more than ``limits`` allow.
        UnusableFileError: the file cannot be opened.
        DamagedFileError: it is no Parquet, or damaged from some row on; all rows before were yielded.
    """
    with _opened(path) as file:
        _check_size(path, file.metadata, limits)
        batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False)
        while True:
            try:
                batch = next(batches, None)
                rows = None if batch is None else batch.to_pylist()
            except (OSError, ValueError) as error:
                raise _damaged(path, error) from None
            if rows is None:
                return
            yield from rows


def _opened(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{path}: Parquet needs pyarrow, which is not installed; pip install 'fathom-lm[data]'"
        ) from None
    try:
        with path.open("rb") as file:
            check_pointer(path, file.read(64))
    except OSError as error:
        raise unreadable(path, error) from None
    try:
        return parquet.ParquetFile(path, memory_map=False)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DamagedFileError:
    reason = " ".join(str(error).split())[:200]
    return DamagedFileError(f"{path}: not readable as Parquet ({reason}); get the file again")


def _check_size(path: Path, metadata: Any, limits: ReadLimits) -> None:
    """Refuse columns that say they unpack to absurd sizes, before a page of them is read."""
    total = 0
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            packed, unpacked = chunk.total_compressed_size, chunk.total_uncompressed_size
            total += unpacked
            if unpacked > limits.ratio_after_bytes and unpacked > limits.max_ratio * max(1, packed):
                raise DataError(
                    f"{path}: column {chunk.path_in_schema!r} unpacks to over {limits.max_ratio} times its size "
                    "(max_ratio), as a decompression bomb does; remove the file, or write it anew without compression"
                )
    if total > limits.max_unpacked_bytes:
        raise DataError(
            f"{path}: unpacks to more than {limits.max_unpacked_bytes:,} bytes (max_unpacked_bytes); cut it into parts"
        )
