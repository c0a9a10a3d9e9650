from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fathom.data.folders.documents import FolderReading
from fathom.errors import DataError
from fathom.spec.data import FolderSource


def read(path: Path, **fields: Any) -> FolderReading:
    return FolderReading(FolderSource(name="mine", path=str(path), **fields))


def texts(reading: FolderReading) -> list[str]:
    return [document.text for document in reading]


def test_every_kind_of_file_is_read_and_hidden_and_other_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.MD").write_text("# marked")
    (tmp_path / "c.py").write_text("x = 1\n")
    (tmp_path / "d.jsonl").write_text('{"text": "row 1"}\n\n{"content": "row 2", "n": 1}\n')
    (tmp_path / "e.csv").write_text("text,n\nrow,1\n")
    (tmp_path / "f.png").write_bytes(b"no")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "f.txt").write_text("no")
    found = [(d.id, d.text) for d in read(tmp_path)]
    assert found == [
        ("a.txt#0", "plain"),
        ("c.py#0", "x = 1\n"),
        ("d.jsonl#0", "row 1"),
        ("d.jsonl#1", "row 2"),
        ("e.csv#0", "row"),
        ("sub/b.MD#0", "# marked"),
    ]
    assert [d.text for d in read(tmp_path / "a.txt")] == ["plain"]


def test_unusable_files_are_counted_while_others_serve(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    reading = read(tmp_path)
    assert [d.text for d in reading] == ["good"]
    where = f"left out {{}}: 1, e.g. {tmp_path}/{{}}.txt: {{}}"
    assert reading.left_out.lines() == [
        where.format("binary files", "binary", "holds binary data; remove it or save it as UTF-8 text"),
        where.format("empty files", "empty", "empty; remove it or add text"),
        where.format(
            "files not in UTF-8", "latin", "not UTF-8 at byte 0; save it as UTF-8, or name its encoding in the source"
        ),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt: empty; remove it or add text"),
        ("a.txt", b"a\0b", r"a\.txt: holds binary data"),
        ("a.md", b"ab\xff", r"a\.md: not UTF-8 at byte 2; save it as UTF-8"),
        ("a.jsonl", b'{"text"\n', r"a\.jsonl, line 1: not JSON"),
        (
            "a.jsonl",
            b'{"body": "x"}\n',
            r"a\.jsonl: no column of text \(text, content, .*\) among 'body'; name the one",
        ),
        ("a.jsonl", json.dumps({"text": 3}).encode(), "line 1: 'text' is no text but int"),
        ("a.jsonl", b"[1]\n", "line 1: no JSON object but an array"),
        ("a.json", b"[]", r"a\.json: holds no record"),
        ("a.json", b"{}", r"a\.json: no column of text .* among none"),
        ("a.csv", b"q,a\n1,2\n", "no column of text .* among 'q', 'a'; .* --text-column"),
        ("a.pdf", b"x", r"a\.pdf: unknown kind of file"),
    ],
)
def test_a_single_bad_file_is_named_with_the_remedy(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read(tmp_path / name))


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no such file or folder; correct path"):
        list(read(tmp_path / "absent"))
    with pytest.raises(DataError, match=r"no file of text or data found; add \.txt, \.md"):
        list(read(tmp_path))
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"no usable text in 1 files \(.*empty"):
        list(read(tmp_path))


def test_one_bad_line_is_counted_and_named(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"row {n}"}) for n in range(5)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:2], '{"text": "cut', *lines[2:], '{"text": null}']))
    reading = read(tmp_path / "a.jsonl")
    assert texts(reading) == [f"row {n}" for n in range(5)]
    assert reading.left_out.lines() == [
        f"left out unreadable records: 1, e.g. {tmp_path}/a.jsonl, line 3: not JSON (Unterminated string starting at: "
        "line 1 column 10 (char 9)); fix or remove it",
        f"left out records without text: 1, e.g. {tmp_path}/a.jsonl, line 7: 'text' is null; "
        "correct or remove the record",
    ]


def test_a_truncated_download_gives_what_is_before_the_cut(tmp_path: Path) -> None:
    prose = " ".join(str(n * n) for n in range(20_000))
    (tmp_path / "a.md.gz").write_bytes(gzip.compress(prose.encode())[:30_000])
    reading = read(tmp_path)
    assert prose.startswith(texts(reading)[0])
    (line,) = reading.left_out.lines()
    assert line.startswith("left out damaged files, read up to the damage: 1, e.g. ")
    assert "cut short" in line


@pytest.mark.parametrize("column", ["text", "content", "raw_content", "document"])
def test_a_data_sets_clone_is_read_and_its_card_left_out(column: str, tmp_path: Path) -> None:
    clone = tmp_path / "tiny"
    (clone / ".git").mkdir(parents=True)
    (clone / "data").mkdir()
    (clone / ".gitattributes").write_text("*.parquet filter=lfs\n")
    (clone / "README.md").write_text("---\nlicense: mit\n---\n# Card\n")
    (clone / "LICENSE.txt").write_text("MIT")
    (clone / "dataset_infos.json").write_text("{}")
    (clone / "tiny.py").write_text("class Tiny: ...\n")
    (clone / "notes.md").write_text("a note")
    table = pyarrow.Table.from_pylist([{"id": n, column: f"parquet {n}"} for n in range(300)])
    parquet.write_table(table, clone / "data" / "train-00000-of-00001.parquet")
    with gzip.open(clone / "data" / "extra.JSONL.gz", "wt") as file:
        file.write(json.dumps({column: "gzip", "meta": {"url": "x"}}) + "\n")
    reading = read(clone)
    assert texts(reading) == ["gzip", *(f"parquet {n}" for n in range(300)), "a note"]
    assert reading.left_out.lines() == [
        "left out hidden files and folders: 2, e.g. .git",
        "left out descriptions beside data files: 4, e.g. LICENSE.txt",
    ]


def test_a_clone_without_its_data_says_how_to_get_it(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "README.md").write_text("# Card\n")
    for name in ("a.parquet", "b.jsonl.gz", "c.jsonl"):
        (tmp_path / name).write_text(pointer)
    with pytest.raises(DataError, match=r"a\.parquet: is a pointer of Git LFS .* run 'git lfs pull'"):
        list(read(tmp_path))
    (tmp_path / "c.jsonl").write_text('{"text": "x"}')
    reading = read(tmp_path)
    assert texts(reading) == ["x"]
    assert reading.left_out.reasons["pointers of Git LFS"].count == 2


def test_a_cache_of_the_hub_is_read_by_its_links(tmp_path: Path) -> None:
    snapshot = tmp_path / "datasets--x--y" / "snapshots" / "0f"
    snapshot.mkdir(parents=True)
    (tmp_path / "datasets--x--y" / "blobs").mkdir()
    (tmp_path / "datasets--x--y" / "blobs" / "1a2b").write_text('{"text": "x"}')
    (snapshot / "train.jsonl").symlink_to("../../blobs/1a2b")
    for root in (snapshot, tmp_path):
        assert texts(read(root)) == ["x"]


def test_data_without_a_column_of_text_is_refused_and_the_remedy_works(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"prompt": ["q"], "n": [1]}), tmp_path / "a.parquet")
    (tmp_path / "notes.md").write_text("a note")
    with pytest.raises(DataError, match=r"a\.parquet: no column of text .* among 'prompt', 'n'; .* --text-column"):
        list(read(tmp_path))
    assert texts(read(tmp_path, text_column="prompt")) == ["q", "a note"]
    with pytest.raises(DataError, match=r"no column 'answer' among 'prompt', 'n'"):
        list(read(tmp_path / "a.parquet", text_column="answer"))
    with pytest.raises(DataError, match=r"line 1: 'n' is no text|no usable text .*'n' is no text but int"):
        list(read(tmp_path / "a.parquet", text_column="n"))


def test_settings_beside_code_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("what it is")
    (tmp_path / "main.ts").write_text("export {}")
    (tmp_path / "package.json").write_text('{"name": "x"}')
    (tmp_path / "tsconfig.json").write_text("{ // comment\n}")
    (tmp_path / "node_modules" / "y").mkdir(parents=True)
    (tmp_path / "node_modules" / "y" / "index.js").write_text("no")
    reading = read(tmp_path)
    assert texts(reading) == ["what it is", "export {}"]
    assert {reason: entry.count for reason, entry in reading.left_out.reasons.items()} == {
        "folders of installed packages": 1,
        "files without a column of text": 1,
        "damaged files, read up to the damage": 1,
    }


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "gb18030"])
def test_other_encodings_are_read_by_mark_or_by_name(encoding: str, tmp_path: Path) -> None:
    declared = {"encoding": encoding} if encoding == "gb18030" else {}
    (tmp_path / "a.txt").write_bytes("河水 deep".encode(encoding))
    (tmp_path / "b.jsonl").write_bytes(json.dumps({"text": "山"}, ensure_ascii=False).encode(encoding))
    assert texts(read(tmp_path, **declared)) == ["河水 deep", "山"]


def test_linked_files_and_folders_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0a1b").write_text("linked")
    root = tmp_path / "root"
    (root / "real").mkdir(parents=True)
    (root / "real" / "a.txt").write_text("real")
    (root / "by-name.md").symlink_to(tmp_path / "blobs" / "0a1b")
    (root / "later").symlink_to(root / "real")
    (root / "again.md").symlink_to(root / "by-name.md")
    (root / "gone.txt").symlink_to(tmp_path / "nowhere")
    reading = read(root)
    assert [(d.id, d.text) for d in reading] == [("again.md#0", "linked"), ("later/a.txt#0", "real")]
    assert reading.left_out.lines() == [
        "left out files and folders reached before by another path: 2, e.g. by-name.md",
        "left out broken links: 1, e.g. gone.txt",
    ]


@pytest.mark.parametrize("target", [".", "..", "../..", "self", "/"])
def test_a_link_that_leads_back_is_refused(target: str, tmp_path: Path) -> None:
    folder = tmp_path / "root" / "inner"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("text")
    link = folder / "self"
    link.symlink_to(target)
    with pytest.raises(DataError, match=rf"{link}: a symbolic link .*remove") as error:
        list(read(tmp_path / "root"))
    assert "\n" not in str(error.value)
    link.unlink()
    assert texts(read(tmp_path / "root")) == ["text"]


def test_links_that_cross_each_other_are_refused(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(name)
        (tmp_path / name / "to").symlink_to(tmp_path / other)
    with pytest.raises(DataError, match="which it lies in itself"):
        list(read(tmp_path))


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}')
    reading = read(tmp_path)
    found = iter(reading)
    next(found)
    (tmp_path / "b.txt").unlink()
    (tmp_path / "c.jsonl").unlink()
    assert list(found) == []
    (line,) = reading.left_out.lines()
    assert line.startswith(
        f"left out unreadable files: 2, e.g. {tmp_path}/b.txt: cannot be read, there is no such file"
    )


def test_a_bomb_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(bytes(100_000_000)))
    with pytest.raises(DataError, match=r"b\.txt\.gz: (holds binary data|unpacks to over 400 times its size)"):
        list(read(tmp_path / "b.txt.gz"))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"a" * 100_000_000))
    with pytest.raises(DataError, match=r"b\.txt\.gz: unpacks to over 400 times its size \(max_ratio\)"):
        list(read(tmp_path))


@given(order=st.permutations(["b.txt", "a.md", "B.txt", "sub", "sub2", "z.jsonl", "a"]))
@settings(max_examples=20, deadline=None)
def test_the_order_of_a_listing_changes_nothing(order: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("root")
    for name in order:
        if "." in name:
            (root / name).write_text('{"text": "x"}')
        else:
            (root / name).mkdir()
            (root / name / "c.txt").write_text(name)
    with pytest.MonkeyPatch.context() as patch:
        listed = os.listdir
        patch.setattr(
            os, "listdir", lambda path: sorted(listed(path), key=lambda name: order.index(name) if name in order else 0)
        )
        found = [document.id for document in read(root)]
    names = ["B.txt", "a/c.txt", "a.md", "b.txt", "sub/c.txt", "sub2/c.txt", "z.jsonl"]
    assert found == [f"{name}#0" for name in names]
