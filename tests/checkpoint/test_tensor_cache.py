"""Cached tensors are computed once for a key, and anew when the file is another key's, damaged or gone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fathom.checkpoint.tensor_cache import cached_tensors

TENSORS = {
    "ids": torch.arange(7, dtype=torch.int32),
    "mask": torch.tensor([True, False]),
    "half": torch.ones(2, 3, dtype=torch.bfloat16),
    "none": torch.empty(0),
    "strided": torch.arange(12).reshape(3, 4).T,
}


class Computation:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, Tensor]:
        self.calls += 1
        return TENSORS


def test_tensors_are_computed_once_for_a_key(tmp_path: Path) -> None:
    compute = Computation()
    for key, calls in (("a", 1), ("a", 1), ("b", 2), ("b", 2), ("a", 3)):
        found = cached_tensors(tmp_path / "cache", key, compute)
        assert compute.calls == calls
        assert found.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            assert torch.equal(found[name], tensor)
            assert found[name].dtype == tensor.dtype
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "gone", "folderless"])
def test_a_damaged_file_is_computed_anew(tmp_path: Path, damage: str) -> None:
    compute, path = Computation(), tmp_path / "step" / "cache"
    cached_tensors(path, "a", compute)
    content = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(content[:-1])
        case "bit":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "empty":
            path.write_bytes(b"")
        case "gone":
            path.unlink()
        case "folderless":
            path.unlink()
            path.parent.rmdir()
    cached_tensors(path, "a", compute)
    assert compute.calls == 2
    assert path.read_bytes() == content
