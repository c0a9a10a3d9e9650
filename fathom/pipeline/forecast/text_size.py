"""How much data there is before it is read: text by sampling its files, conversations and problems by their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fathom.data.folders.documents import FolderReading
from fathom.data.folders.scan import scan_folder
from fathom.data.forms import file_records
from fathom.data.left_out import LeftOutReport
from fathom.data.records import Record
from fathom.spec.data import FolderSource
from fathom.tokenizer import train_bpe

TEXT_BYTES_PER_TOKEN = 3.3
"""Where no vocabulary is measured."""
_TEMPLATE_TOKENS = 12
SAMPLE_BYTES = 400_000
_COUNTED_BYTES = 16_000_000
_ROWS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSize:
    """The text of a source. ``counted`` says that all of it was read; ``sample`` is some of it."""

    text_bytes: int
    counted: bool
    sample: tuple[str, ...]


def text_size(source: FolderSource) -> TextSize:
    """Read a folder's or file's text until ``_COUNTED_BYTES``, and conclude from the files read to all of them.

    Raises:
        DataError: there is no usable text.
    """
    root = Path(source.path)
    sizes = _file_sizes(root)
    read = 0
    files: set[str] = set()
    sample: list[str] = []
    counted = True
    for document in FolderReading(source):
        size = len(document.text.encode(errors="replace"))
        if read > _COUNTED_BYTES:
            counted = False
            break
        if sum(map(len, sample)) < SAMPLE_BYTES:
            sample.append(document.text[:SAMPLE_BYTES])
        read += size
        files.add(document.id.rpartition("#")[0])
    seen = sum(sizes.get(name, 0) for name in files)
    scale = 1.0 if counted or not seen else max(1.0, sum(sizes.values()) / seen)
    return TextSize(text_bytes=round(read * scale), counted=counted, sample=tuple(sample))


def _file_sizes(root: Path) -> Mapping[str, int]:
    if root.is_file():
        return {root.name: root.stat().st_size}
    return {found.name: found.path.stat().st_size for found in scan_folder(root, LeftOutReport())}


def bytes_per_token(sample: Sequence[str], vocab_size: int) -> float:
    """Return the bytes of a token of a vocabulary that is learned from half of a sample, measured on the other half."""
    whole = "\n".join(sample)
    half = max(1, len(whole) // 2)
    tokenizer = train_bpe([whole[:half]], vocab_size=vocab_size)
    other = whole[half:] or whole
    return len(other.encode(errors="replace")) / max(1, len(tokenizer.encode(other)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsSize:
    """The rows of a data file: how many, and of the first the characters of text on average and in the longest."""

    rows: int
    characters: float
    longest: int


def rows_size(path: Path) -> RowsSize:
    """Count the rows of a data file, and measure the first ``_ROWS`` of them.

    Raises:
        DataError: it cannot be read.
    """
    rows = 0
    lengths: list[int] = []
    for record in file_records(path):
        if isinstance(record, Record):
            rows += 1
            if rows <= _ROWS:
                lengths.append(_characters(record.value))
    return RowsSize(rows=rows, characters=sum(lengths) / max(1, len(lengths)), longest=max(lengths, default=0))


def row_tokens(characters: float) -> float:
    """Return about how many tokens a row of a data file has, with its chat template."""
    return characters / TEXT_BYTES_PER_TOKEN + _TEMPLATE_TOKENS


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_characters(item) for item in value.values())
    if isinstance(value, list):
        return sum(_characters(item) for item in value)
    return 0
