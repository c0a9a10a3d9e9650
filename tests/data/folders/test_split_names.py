"""A split is what a path names last, and held-out ones are no text to train on beside training data."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from fathom.data.folders.documents import FolderReading
from fathom.data.folders.split_names import before_split, split_of
from fathom.spec.data import FolderSource


@pytest.mark.parametrize(
    ("path", "before", "split"),
    [
        ("data/test-00000-of-00001.parquet", "data/", "test"),
        ("train/chunk1/a.jsonl.zst", "", "train"),
        ("TinyStories-valid.txt", "tinystories-", "valid"),
        ("test/train.jsonl", "test/", "train"),
        ("contest/latest.jsonl", "contest/latest.jsonl", ""),
    ],
)
def test_a_path_names_its_split(path: str, before: str, split: str) -> None:
    assert (before_split(PurePosixPath(path)), split_of(PurePosixPath(path))) == (before, split)


def read(root: Path, *names: str) -> tuple[list[str], list[str]]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f'{{"text": "{name}"}}\n', encoding="utf-8")
    reading = FolderReading(FolderSource(name="mine", path=str(root)))
    return [document.id.partition("#")[0] for document in reading], reading.left_out.lines()


def test_held_out_splits_beside_training_data_are_left_out_and_listed(tmp_path: Path) -> None:
    kept, lines = read(tmp_path, "data/train-0.jsonl", "data/test-0.jsonl", "data/validation-0.jsonl", "more.jsonl")
    assert kept == ["data/train-0.jsonl", "more.jsonl"]
    assert lines == ["left out held-out splits beside training data: 2, e.g. data/test-0.jsonl"]


def test_test_files_of_code_and_splits_without_training_data_are_text(tmp_path: Path) -> None:
    names = ("src/train.py", "src/test.py", "eval/test-0.jsonl", "stories/test.txt")
    kept, lines = read(tmp_path, *names)
    assert sorted(kept) == sorted(names)
    assert not lines


def test_a_marker_between_documents_of_a_text_file_is_not_their_text(tmp_path: Path) -> None:
    (tmp_path / "stories.txt").write_text("Once.\n<|endoftext|>\nTwice.\n<|endoftext|>\n", encoding="utf-8")
    reading = FolderReading(FolderSource(name="mine", path=str(tmp_path)))
    assert [document.text.strip() for document in reading] == ["Once.", "Twice."]
