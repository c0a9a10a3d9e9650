from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fathom.data.records import BadRecord, Record, holds_records, read_records
from fathom.data.records.compressed import DEFAULT_LIMITS, ReadLimits
from fathom.errors import DataError

ROWS: list[dict[str, Any]] = [{"text": "a\nb", "n": 1}, {"text": 'q"uo,te 字', "n": 2}, {"text": "", "n": 3}]
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".ZST": zstandard.compress,
}


def values(path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> list[dict[str, Any]]:
    found = list(read_records(path, limits))
    assert [item for item in found if isinstance(item, BadRecord)] == []
    return [item.value for item in found if isinstance(item, Record)]


def told(path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> list[str | int]:
    """The value n of each record, and what is said of each bad one, without the folder."""
    return [
        item.value["n"] if isinstance(item, Record) else str(item).replace(f"{path.parent}/", "")
        for item in read_records(path, limits)
    ]


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("suffix", [".jsonl", ".NDJSON", ".json", ".csv", ".tsv"])
def test_every_form_gives_the_same_rows(suffix: str, packed: str, tmp_path: Path) -> None:
    written: list[str]
    match suffix:
        case ".json":
            written = [json.dumps(ROWS), json.dumps(ROWS, indent=2), "".join(json.dumps(r, indent=1) for r in ROWS)]
            written += ["\n".join(map(json.dumps, ROWS))]
        case ".csv":
            written = ['text,n\r\n"a\nb",1\r\n"q""uo,te 字",2\r\n,3\r\n']
        case ".tsv":
            written = ['text\tn\n"a\nb"\t1\n"q""uo,te 字"\t2\n\t3']
        case _:
            written = ["\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), json.dumps(ROWS)]
    for content in written:
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            path = tmp_path / f"rows{suffix}{packed}"
            path.write_bytes(PACK[packed](content.encode(encoding)))
            assert holds_records(path)
            assert [{**row, "n": int(row["n"])} for row in values(path)] == ROWS


def test_parquet_is_read_by_batches_of_row_groups(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "nested": {"a": [i]}} for i in range(1000)]
    path = tmp_path / "part.PARQUET"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=300)
    found = list(read_records(path))
    assert [item.value for item in found if isinstance(item, Record)] == rows
    assert found[299].place == f"{path}, row 300"
    parquet.write_table(pyarrow.Table.from_pylist([{"n": "1"}, {"n": "x" * 200}, {"n": "2"}]), path)
    too_long = "part.PARQUET, row 2: longer than 100 bytes; shorten or remove it"
    assert told(path, ReadLimits(max_record_bytes=100)) == ["1", too_long, "2"]
    path.write_bytes(path.read_bytes()[:-20])
    (bad,) = read_records(path)
    assert isinstance(bad, BadRecord)
    assert "not readable as Parquet (" in bad.sentence
    assert bad.sentence.endswith("get the file again")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "a.jsonl",
            b'{"n": 1}\n{"n": 2\n[1]\n\xff\n"x"\n{"n": 3}',
            [
                1,
                "a.jsonl, line 2: not JSON (Expecting ',' delimiter: line 1 column 8 (char 7)); fix or remove it",
                "a.jsonl, line 3: no JSON object but an array; fix or remove it",
                "a.jsonl, line 4: not UTF-8 at byte 0; save it as UTF-8",
                "a.jsonl, line 5: no JSON object but a text; fix or remove it",
                3,
            ],
        ),
        (
            "a.json",
            b'[{"n": 1}, {"n": }, 7, {"n": "\xff"}, {"n": 2},]',
            [
                1,
                "a.json, row 2: not JSON (Expecting value: line 1 column 7 (char 6)); fix or remove it",
                "a.json, row 3: no JSON object but a number; fix or remove it",
                "a.json, row 4: not UTF-8 at byte 7; save it as UTF-8",
                2,
            ],
        ),
        ("a.json", b'[{"n": 1}', [1, "a.json, row 2: the array has no end; get the file again or close it with ]"]),
        ("a.json", b"[]", []),
        (
            "a.json",
            b'{"n": 1}\nnonsense\n{"n": 2}',
            [1, "a.json, line 2: not JSON (Expecting value: line 1 column 1 (char 0)); fix or remove it", 2],
        ),
        ("a.jsonl", b"[" * 100_000, ["a.jsonl, line 1: nested too deeply; flatten or remove it"]),
        (
            "a.csv",
            b"n,b\n1\n2,3\n\xff,1\n",
            [
                "a.csv, row 1: has 1 values, and the first line 2 names; fix or remove it",
                "2",
                "a.csv, row 3: not UTF-8; save the file as UTF-8",
            ],
        ),
        (
            "a.jsonl.gz",
            b"no gzip",
            [
                "a.jsonl.gz, line 1: not readable as .gz (Error -3 while decompressing data: incorrect header check); "
                "get the file again"
            ],
        ),
    ],
)
def test_bad_records_are_named_and_the_others_read(
    name: str, content: bytes, expected: list[str | int], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert told(tmp_path / name) == expected


def test_one_text_of_a_parquet_that_is_not_utf8_is_one_bad_record(tmp_path: Path) -> None:
    column = pyarrow.array([b"1", b"\xff", b"3"]).cast(pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"n": column}), tmp_path / "a.parquet")
    first, bad, last = told(tmp_path / "a.parquet")
    assert (first, last) == ("1", "3")
    assert str(bad).startswith("a.parquet, row 2: 'n' is not readable ('utf-8' codec can't decode byte 0xff")


def test_a_record_above_the_limit_is_passed_over(tmp_path: Path) -> None:
    limits = ReadLimits(max_record_bytes=100)
    rows = [{"n": 1}, {"n": "x" * 200_000 + '\\"]}'}, {"n": 2}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    too_long = "longer than 100 bytes; shorten or remove it"
    assert told(tmp_path / "a.jsonl", limits) == [1, f"a.jsonl, line 2: {too_long}", 2]
    assert told(tmp_path / "a.json", limits) == [1, f"a.json, row 2: {too_long}", 2]


@pytest.mark.parametrize("packed", [packed for packed in PACK if packed])
def test_a_file_cut_short_gives_what_is_before_the_cut(packed: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.jsonl{packed}"
    lines = "".join(json.dumps({"n": i, "t": str(i * 7919 % 1000)}) + "\n" for i in range(30_000)).encode()
    whole = b"".join(PACK[packed](lines[start : start + 100_000]) for start in range(0, len(lines), 100_000))
    path.write_bytes(whole[: len(whole) * 3 // 4])
    *read, last = told(path)
    assert len(read) > 10_000
    assert read == list(range(len(read)))
    assert f"a.jsonl{packed}, line " in str(last)
    assert "cut short" in str(last)
    path.write_bytes(whole + b"\0" * 100 if packed == ".gz" else whole)
    assert told(path) == list(range(30_000))


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".xz", ".ZST"])
def test_a_bomb_ends_in_one_line_and_takes_no_memory(packed: str, tmp_path: Path) -> None:
    path = tmp_path / f"bomb.jsonl{packed}"
    path.write_bytes(PACK[packed](bytes(20_000_000)))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"bomb.*unpacks to over 300 times its size \(max_ratio\).*unpack it") as error:
        list(read_records(path, ReadLimits(max_ratio=300, max_record_bytes=1_000_000, ratio_after_bytes=4_000_000)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"more than 1,000 bytes \(max_unpacked_bytes\)"):
        list(read_records(path, ReadLimits(max_unpacked_bytes=1_000)))


def test_a_parquet_bomb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["x" * 10_000_000]})
    parquet.write_table(table, path, compression="zstd", use_dictionary=False)
    with pytest.raises(DataError, match=r"a\.parquet: unpacks to over 400 times its size \(max_ratio\)"):
        list(read_records(path, ReadLimits(ratio_after_bytes=1_000_000)))


@pytest.mark.parametrize(("name", "library"), [("a.jsonl.zst", "zstandard"), ("a.parquet", "pyarrow")])
def test_a_missing_library_is_named_with_its_extra(
    name: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(DataError, match=rf"needs {library}.*pip install .*\[data\]"):
        list(read_records(tmp_path / name))


def test_an_absent_file_and_another_kind_are_refused(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet", "a.json.zst"):
        with pytest.raises(DataError, match=r"cannot be read, there is no such file"):
            list(read_records(tmp_path / name))
    with pytest.raises(DataError, match=r"a\.pdf: not a data file; give one of \.jsonl"):
        list(read_records(tmp_path / "a.pdf"))


json_objects = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


@given(rows=st.lists(json_objects, max_size=8), indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_rows_come_back_from_any_layout(
    rows: list[dict[str, Any]], indent: int | None, ascii_only: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    texts = [json.dumps(row, indent=indent, ensure_ascii=ascii_only) for row in rows]
    (folder / "array.json").write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_only))
    (folder / "values.json").write_text("\n".join(texts))
    (folder / "array.jsonl.gz").write_bytes(gzip.compress(f"[{','.join(texts)}]".encode()))
    (folder / "lines.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for name in ("array.json", "values.json", "array.jsonl.gz", "lines.jsonl"):
        if name == "values.json" and not all(rows):
            continue  # an empty object is on one line whatever the indent
        assert values(folder / name) == rows, name


@given(
    suffix=st.sampled_from([".jsonl", ".json", ".csv", ".jsonl.gz", ".json.bz2", ".csv.xz", ".jsonl.ZST", ".parquet"]),
    changes=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3)), max_size=4),
    cut=st.integers(0, 400),
)
@settings(max_examples=200, deadline=None)
def test_damage_of_any_kind_is_a_bad_record_or_one_error(
    suffix: str, changes: list[tuple[int, bytes]], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / f"a{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
        content = path.read_bytes()
    else:
        written = "text,n\r\na,1\r\n" if suffix.startswith(".csv") else json.dumps(ROWS)
        written = "\n".join(map(json.dumps, ROWS)) if suffix.startswith(".jsonl") else written
        content = PACK[suffix[suffix.rindex(".") :]](written.encode()) if suffix.count(".") == 2 else written.encode()
    for place, change in changes:
        content = content[:place] + change + content[place + len(change) :]
    path.write_bytes(content[: len(content) - cut] if cut < 100 else content)
    said: list[str] = []
    try:
        said += [str(item) for item in read_records(path) if isinstance(item, BadRecord)]
    except DataError as error:
        said.append(str(error))
    assert not any("\n" in line for line in said)
