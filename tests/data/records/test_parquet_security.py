"""Damaged Parquet ends in errors of ours, never in the end of the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow
from pyarrow import parquet

from fathom.data.records.parquet import parquet_rows

_READ_DAMAGED = """
import sys
from pathlib import Path
from fathom.data.folders.record_texts import record_texts
from fathom.data.left_out import LeftOutReport
from fathom.data.records import read_records
from fathom.errors import DataError
from fathom.spec.data import FolderSource

path = Path(sys.argv[1])
whole, footer = path.read_bytes(), int(sys.argv[2])
for place in range(len(whole) - 8 - footer, len(whole) - 8):
    for flipped in (1, 2, 4):
        damaged = bytearray(whole)
        damaged[place] ^= flipped
        path.write_bytes(damaged)
        try:
            list(read_records(path))
            list(record_texts(path, FolderSource(name="x", path=str(path)), LeftOutReport()))
        except DataError as error:
            assert "; " in str(error)
"""


def test_a_damaged_footer_is_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"text": "the road", "messages": [{"role": "user", "content": "Hi"}]}] * 3
    parquet.write_table(pyarrow.Table.from_pylist(rows).replace_schema_metadata(None), path, store_schema=False)
    footer = int.from_bytes(path.read_bytes()[-8:-4], "little")
    run = subprocess.run(
        [sys.executable, "-c", _READ_DAMAGED, str(path), str(footer)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_sound_rows_of_several_groups_are_read(tmp_path: Path) -> None:
    table = pyarrow.table({"text": [str(number) for number in range(50)]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    assert [row["text"] for row in parquet_rows(tmp_path / "a.parquet")] == list(map(str, range(50)))
