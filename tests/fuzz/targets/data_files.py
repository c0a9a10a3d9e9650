"""Damaged files of data in every form and compression: read as records, as text, and by ``fathom inspect``."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from fathom.cli import inspect_data
from fathom.data.folders.record_texts import record_texts
from fathom.data.left_out import LeftOutReport
from fathom.data.records import BadRecord, read_records
from fathom.data.records.compressed import ReadLimits
from fathom.errors import FathomError
from fathom.spec.data import FolderSource
from tests.fuzz.driver import Target
from tests.fuzz.json_damage import damage

_LIMITS = ReadLimits(max_record_bytes=1 << 20, max_ratio=100, ratio_after_bytes=4 << 20, max_unpacked_bytes=64 << 20)
_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
_ROWS: tuple[Mapping[str, Any], ...] = (
    {"text": "The river sees the road. " * 4},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes", "tool_calls": [_CALL]}]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}], "tools": "[]"},
    {"instruction": "Add", "input": "1, 2", "output": "3"},
    {"prompt": "Hi", "chosen": "Yes", "rejected": "No"},
    {"question": "1 + 2?", "answer": "So it is #### 3", "solution": "3"},
    {"prompt": [{"role": "user", "content": "1 + 2?"}], "answer": "3", "test_list": ["assert f(1) == 2"]},
)
_PACKED: Mapping[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data, 1, mtime=0),
    ".bz2": lambda data: bz2.compress(data, 1),
    ".xz": lambda data: lzma.compress(data, preset=0),
    ".zst": zstandard.compress,
}
_PIECES = (
    b"\xff" * 8,
    b"\0" * 8,
    b'"',
    b"\n",
    b",",
    b"[",
    b"{",
    b"}",
    b"\\ud800",
    b"\x1b]0;x\x07",
    b"\r",
    b"\xef\xbb\xbf",
)


def _edited(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with a few overwritten, inserted or cut."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(content) + 1)
        piece = rng.choice((rng.randbytes(rng.choice((1, 4))), rng.choice(_PIECES), rng.choice(_PIECES) * 300))
        content[at : at + rng.choice((0, len(piece)))] = piece
    return bytes(content[: rng.randrange(1, len(content))] if rng.random() < 0.1 else content)


class _DataFiles(Target):
    """An input is the suffix of the file, a newline, and what it holds."""

    suffix = ".data"
    memory_bytes = 400 * 2**20

    def check(self, data: bytes) -> None:
        suffix, _, content = data.partition(b"\n")
        path = self.folder / f"data{suffix.decode()}"
        path.write_bytes(content)
        refused = None
        for use in (_read, _read_texts, _inspect):
            try:
                use(path)
            except FathomError as error:
                refused = error
        if refused is not None:
            with self.tolerated():
                raise refused


def _read(path: Path) -> None:
    for record in read_records(path, _LIMITS):
        line = str(record) if isinstance(record, BadRecord) else record.place
        assert len(line) < 20_000
        assert "\n" not in line


def _read_texts(path: Path) -> None:
    report = LeftOutReport()
    for text in record_texts(path, FolderSource(name="x", path=str(path)), report):
        assert isinstance(text, str)
    assert all(isinstance(line, str) for line in report.lines())


def _inspect(path: Path) -> None:
    for as_json in (True, False):
        with contextlib.redirect_stdout(io.StringIO()):
            inspect_data.inspect(path, as_json=as_json, kind="", format_name="", fields=[])


class DataFiles(_DataFiles):
    """Text: lines of JSON, arrays and tables."""

    name = "data_files"
    short_executions = 60

    def make(self, rng: random.Random) -> bytes:
        rows = [json.loads(json.dumps(rng.choice(_ROWS)))] * rng.choice((1, 2, 4))
        if rng.random() < 0.8:
            rows = damage(rows, rng)
        kind = rng.choice((".jsonl", ".jsonl", ".ndjson", ".json", ".json", ".csv", ".tsv"))
        packing = rng.choice(("", "", "", *_PACKED))
        data = _written(kind, rows, rng)
        if rng.random() < 0.3 or not data:
            data = _edited(data or b"x", rng)
        data = _PACKED[packing](data)
        if packing and rng.random() < 0.5:
            data = _edited(data, rng)
        return (kind + packing).encode() + b"\n" + data


def _written(kind: str, rows: Any, rng: random.Random) -> bytes:
    """Return rows, or what damage made of them, as a file of this kind."""
    if kind in (".jsonl", ".ndjson") and isinstance(rows, list):
        return b"".join(_json(row) + b"\n" for row in rows)
    if kind in (".csv", ".tsv") and isinstance(rows, list) and rows and isinstance(rows[0], dict):
        out = io.StringIO()
        table = csv.writer(out, delimiter="," if kind == ".csv" else "\t")
        table.writerow(rows[0])
        table.writerows(
            [value if isinstance(value, str) else json.dumps(value) for value in dict(row).values()]
            for row in rows
            if isinstance(row, dict)
        )
        return out.getvalue().encode("utf-8", "surrogatepass")
    if isinstance(rows, list) and rng.random() < 0.3:
        return b" ".join(map(_json, rows))
    return _json(rows)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


class ParquetFiles(_DataFiles):
    """Parquet: bytes edited in the footer, in the pages or anywhere, and columns of unusual types."""

    name = "parquet"
    short_executions = 60
    memory_bytes = 600 * 2**20

    def start(self) -> None:
        tables = [pa.Table.from_pylist([dict(row)] * 20) for row in _ROWS]
        odd = {
            "text": pa.array(["a", "b"]).dictionary_encode(),
            "messages": pa.array([b"\xff", None], pa.binary()),
            "prompt": pa.array([2**62, -(2**62)], pa.timestamp("us")),
            "answer": pa.array([1, 2], pa.decimal128(38)),
            "chosen": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
        }
        tables.append(pa.table(odd))
        self._whole = []
        for table in tables:
            for options in ({"compression": "snappy"}, {"compression": "none", "use_dictionary": False}):
                out = io.BytesIO()
                pq.write_table(table, out, **options)
                self._whole.append(out.getvalue())

    def make(self, rng: random.Random) -> bytes:
        whole = rng.choice(self._whole)
        if rng.random() < 0.1:
            return b".parquet\n" + _edited(whole, rng)
        content = bytearray(whole)
        footer = int.from_bytes(whole[-8:-4], "little")
        for _ in range(rng.choice((1, 1, 2, 5))):
            low, high = (len(content) - 8 - footer, len(content) - 8) if rng.random() < 0.6 else (4, len(content) - 8)
            at = rng.randrange(low, high)
            content[at] = rng.choice((rng.randrange(256), content[at] ^ 1 << rng.randrange(8), 0xFF, 0x7F, 0))
        return b".parquet\n" + bytes(content)


TARGETS = (DataFiles, ParquetFiles)
