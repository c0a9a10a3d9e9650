"""The index of sharded tensors, and what is made of one that lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fathom.checkpoint.sharded import index
from fathom.checkpoint.sharded.index import (
    Index,
    StoredPiece,
    index_text,
    read_index,
    stem_files,
    stem_of,
    stored_tensor,
    tiling_fault,
)
from fathom.errors import CheckpointError

FILES = ["model-00000-of-00002.safetensors", "model-00001-of-00002.safetensors"]
SOUND: dict[str, Any] = {
    "files": FILES,
    "tensors": {"w": {"dtype": "F32", "shape": [4, 6], "pieces": [[0, [0, 0], [4, 2]], [1, [0, 2], [4, 4]]]}},
}


def with_tensor(**changes: Any) -> dict[str, Any]:
    return {"files": FILES, "tensors": {"w": SOUND["tensors"]["w"] | changes}}


def read(folder: Path, document: Any) -> Index:
    path = folder / "model.index.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return read_index(path, FILES)


def test_an_index_comes_back(tmp_path: Path) -> None:
    entries = {"w": stored_tensor("w", torch.bfloat16, (4, 6)), "step": stored_tensor("step", torch.float32, ())}
    halves = (StoredPiece(FILES[1], (0, 0), (4, 2)), StoredPiece(FILES[0], (0, 2), (4, 4)))
    written = Index(entries, {"w": halves, "step": (StoredPiece(FILES[0], (), ()),)})
    assert read(tmp_path, index_text(written)) == written


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("{", "cannot be used"),
        ("[" * 100_000, "cannot be used"),
        ([], "needs files and tensors"),
        (SOUND | {"more": 1}, "needs files and tensors"),
        (SOUND | {"files": ["../model-00000-of-00002.safetensors", FILES[1]]}, "files that the manifest does not"),
        (SOUND | {"files": [7]}, "files that the manifest does not"),
        (SOUND | {"tensors": []}, "no table"),
        (with_tensor(dtype="F12"), "is of type 'F12'"),
        (with_tensor(dtype=["F32"]), "is of type"),
        (with_tensor(shape=[4, -6]), "is none of a tensor"),
        (with_tensor(shape=[2**40, 2**40]), "is none of a tensor"),
        (with_tensor(shape=[4, True]), "is none of a tensor"),
        (with_tensor(shape=[4, 7]), "leave a gap"),
        (with_tensor(shape=[4, 5]), "lies outside"),
        (with_tensor(pieces=[]), "has no pieces"),
        (with_tensor(pieces={"0": 1}), "has no pieces"),
        (with_tensor(pieces=[[2, [0, 0], [4, 6]]]), "is of no file"),
        (with_tensor(pieces=[[True, [0, 0], [4, 6]]]), "is of no file"),
        (with_tensor(pieces=[[0, [0], [4, 6]]]), "lies outside"),
        (with_tensor(pieces=[[0, [0, 0]]]), "is not a file's number"),
        (with_tensor(pieces=[[0, [0, 0], [4, 3]], [1, [0, 2], [4, 4]]]), "overlap"),
        (with_tensor(pieces=[[0, [0, 0], [4, 6]], [1, [0, 0], [4, 6]]]), "overlap"),
        (with_tensor(pieces=[[0, [0, 0], [4, 1]], [1, [0, 2], [4, 4]]]), "leave a gap"),
        (with_tensor(pieces=[[0, [0, 0], [2, 2]], [0, [3, 0], [1, 2]], [1, [0, 2], [4, 4]]]), "leave a gap"),
        (with_tensor(pieces=[[0, [0, 10**30], [4, 2]]]), "lies outside"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, document: Any, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem) as caught:
        read(tmp_path, document)
    assert "model.index.json: cannot be used" in str(caught.value)
    assert "continue from an earlier" in str(caught.value)


def test_pieces_that_cannot_be_cut_apart_are_refused_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spiral peels off one piece a cut, and a pinwheel has no cut at all."""
    cut, cuts = index._cut, []
    monkeypatch.setattr(index, "_cut", lambda boxes, dim: cuts.append(dim) or cut(boxes, dim))
    left, top, right, bottom, spiral = 0, 0, 200, 200, []
    while right - left > 2:
        spiral += [((top, left), (1, right - left)), ((top + 1, left), (bottom - top - 1, 1))]
        left, top = left + 1, top + 1
    spiral.append(((top, left), (bottom - top, right - left)))
    assert tiling_fault((200, 200), spiral) is not None
    assert len(cuts) < 100
    pinwheel = [((0, 0), (1, 2)), ((0, 2), (2, 1)), ((2, 1), (1, 2)), ((1, 0), (2, 1)), ((1, 1), (1, 1))]
    assert tiling_fault((3, 3), pinwheel) is not None


def test_files_know_their_stems() -> None:
    names = [*FILES, "model.index.json", "optimizer-00000-of-00002.safetensors", "model.safetensors", "state.json"]
    assert stem_files(names, "model") == [*FILES, "model.index.json", "model.safetensors"]
    assert stem_files(names, "mod.l") == []
    assert [stem_of(name) for name in names] == ["model", "model", None, "optimizer", "model", None]
