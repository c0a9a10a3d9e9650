"""Boxes of stored tensors: the same numbers as slices, and few bytes besides."""

from __future__ import annotations

from io import FileIO
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fathom.checkpoint import regions
from fathom.checkpoint.tensorfile import TensorFile, write_tensors
from fathom.errors import CheckpointError


class CountingFile(FileIO):
    """Counts what is read."""

    count = 0

    def readinto(self, buffer: object) -> int:
        found = super().readinto(buffer)  # type: ignore[arg-type]
        CountingFile.count += found
        return found


@st.composite
def boxes(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    shape = draw(st.lists(st.integers(1, 7), max_size=4))
    lengths = [draw(st.integers(0, size)) for size in shape]
    return shape, [draw(st.integers(0, size - length)) for size, length in zip(shape, lengths, strict=True)], lengths


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("regions")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(boxes(), st.sampled_from([2, 16, 64]), st.sampled_from([2, 12, 4096]), st.booleans())
def test_a_box_is_what_a_slice_is(
    folder: Path, drawn: tuple[list[int], list[int], list[int]], block: int, gap: int, other_type: bool
) -> None:
    shape, offset, lengths = drawn
    stored = torch.arange(torch.Size(shape).numel(), dtype=torch.int16).view(shape)
    path = folder / "numbers"
    path.write_bytes(b"head" + stored.numpy().tobytes())
    wanted = stored[tuple(slice(start, start + length) for start, length in zip(offset, lengths, strict=True))]
    destination = torch.full(lengths, -1, dtype=torch.float32 if other_type else torch.int16)
    with pytest.MonkeyPatch.context() as patch, FileIO(path) as file:
        patch.setattr(regions, "BLOCK_BYTES", block)
        patch.setattr(regions, "_GAP_BYTES", gap)
        regions.read_region(file, 4, shape, torch.int16, offset, destination)
    assert torch.equal(destination.to(torch.int16), wanted)


def test_columns_of_long_rows_are_read_without_the_rest(tmp_path: Path) -> None:
    stored = torch.arange(64 * 65536, dtype=torch.float32).view(64, 65536)
    write_tensors(tmp_path / "t", {"w": stored})
    place, destination = TensorFile.open(tmp_path / "t").places["w"], torch.zeros(64, 1000)
    CountingFile.count = 0
    with CountingFile(tmp_path / "t") as file:
        regions.read_region(file, place, stored.shape, stored.dtype, (0, 300), destination)
    assert torch.equal(destination, stored[:, 300:1300])
    assert CountingFile.count == destination.nbytes


def test_what_a_file_has_not_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", {"w": torch.ones(4, 4)})
    opened = TensorFile.open(tmp_path / "t")
    with pytest.raises(CheckpointError, match=r"has no \(2, 4\) at \(3, 0\)"):
        opened.read_region("w", (3, 0), torch.empty(2, 4))
    content = (tmp_path / "t").read_bytes()
    (tmp_path / "t").write_bytes(content[:-8])
    with pytest.raises(CheckpointError, match=r"it ends within w\); download"):
        opened.read_region("w", (2, 0), torch.empty(2, 4))
