"""Pipes, devices and folders where somebody else's run, model or data should have a file: refused, never waited for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fathom.checkpoint.gguf.container import Container
from fathom.checkpoint.tensorfile import TensorFile
from fathom.data.corpus import CorpusSummary, read_documents
from fathom.data.image_text import ImageTextFile
from fathom.data.images import open_image
from fathom.data.records import read_records
from fathom.data.shards import TokenShards
from fathom.errors import FathomError
from fathom.files import remove_leftovers
from fathom.inference.run_record import read_recipe, read_state
from fathom.train.metrics import JsonLines, read_json_lines

READERS: dict[str, Callable[[Path], object]] = {
    "state.json": lambda path: read_state(path.parent),
    "recipe.json": lambda path: read_recipe(path.parent),
    "metrics.jsonl": read_json_lines,
    "experts.jsonl": lambda path: JsonLines(path, after_step=0),
    "summary.json": lambda path: CorpusSummary.load(path.parent),
    "index.json": lambda path: TokenShards.open(path.parent),
    "train/mine.jsonl": lambda path: list(read_documents(path.parent.parent, "mine", "train")),
    "pairs.jsonl": ImageTextFile.open,
    "rows.jsonl": lambda path: list(read_records(path)),
    "rows.csv": lambda path: list(read_records(path)),
    "rows.json.gz": lambda path: list(read_records(path)),
    "rows.parquet": lambda path: list(read_records(path)),
    "image.png": open_image,
    "model.safetensors": TensorFile.open,
    "model.gguf": Container.open,
}


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if kind == "pipe" and hasattr(os, "mkfifo"):
        os.mkfifo(path)
    elif kind == "device" and Path("/dev/zero").exists():
        path.symlink_to("/dev/zero")
    elif kind == "loop" and hasattr(os, "mkfifo"):
        path.symlink_to(path.name)
    else:
        path.mkdir()
    if kind == "loop" and name in ("state.json", "metrics.jsonl", "experts.jsonl"):
        return  # these may be missing, and so is what a link to itself leads to
    with pytest.raises(FathomError) as caught:
        READERS[name](path)
    assert path.name in str(caught.value)
    assert str(caught.value).isprintable()


def test_leftovers_that_are_pipes_are_removed(tmp_path: Path) -> None:
    make = getattr(os, "mkfifo", os.mkdir)
    make(tmp_path / ".file.0a1b2c3d.partial")
    (tmp_path / ".folder.0a1b2c3d.partial").mkdir()
    make(tmp_path / ".folder.0a1b2c3d.partial" / "names")
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("image", ["a\\u0000b.png", "\\ud800.png", "a.png"])
def test_paths_of_images_that_no_system_has_are_refused(image: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(f'{{"image": "{image}", "text": "x"}}\n')
    (pair,) = ImageTextFile.open(tmp_path / "pairs.jsonl").pairs
    with pytest.raises(FathomError) as caught:
        open_image(pair.image)
    assert str(caught.value).isprintable()


def test_pairs_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("[" * 200_000 + "\n")
    with pytest.raises(FathomError, match=r"line 1: is no JSON"):
        ImageTextFile.open(tmp_path / "pairs.jsonl")
