from __future__ import annotations

import json
from pathlib import Path

import pytest

from fathom.data.folder import FolderReading
from fathom.errors import DataError
from fathom.spec.data import FolderSource


def read(path: Path) -> FolderReading:
    return FolderReading(FolderSource(name="mine", path=str(path)))


def test_every_kind_of_file_is_read_and_hidden_and_other_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.MD").write_text("# marked")
    (tmp_path / "c.py").write_text("x = 1\n")
    (tmp_path / "d.jsonl").write_text('{"text": "row 1"}\n\n{"content": "row 2", "n": 1}\n')
    (tmp_path / "e.csv").write_text("no")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "f.txt").write_text("no")
    found = [(d.id, d.text) for d in read(tmp_path)]
    assert found == [
        ("a.txt#0", "plain"),
        ("c.py#0", "x = 1\n"),
        ("d.jsonl#0", "row 1"),
        ("d.jsonl#1", "row 2"),
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
    assert [line.split(": ")[1].split(";")[0].split(" at")[0] for line in reading.skipped] == [
        "holds binary data",
        "empty",
        "not UTF-8",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt: empty; remove it or add text"),
        ("a.txt", b"a\0b", r"a\.txt: holds binary data"),
        ("a.md", b"ab\xff", r"a\.md: not UTF-8 at byte 2; save it as UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text"\n', r"a\.jsonl: line 2 is not JSON"),
        ("a.jsonl", b'{"body": "x"}\n', r"a\.jsonl: line 1 has no text in 'text' or 'content'"),
        ("a.jsonl", json.dumps({"text": 3}).encode(), "line 1 has no text"),
        ("a.jsonl", b"[1]\n", "line 1 has no text"),
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
    with pytest.raises(DataError, match=r"no \.txt, \.md, \.py, \.jsonl file found"):
        list(read(tmp_path))
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"no usable text in 1 files \(.*empty"):
        list(read(tmp_path))
