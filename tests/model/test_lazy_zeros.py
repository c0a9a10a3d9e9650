"""Pages of a cache take memory once they are written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fathom.model.cache.lazy_zeros import lazy_zeros
from fathom.model.cache.pages import PlainPages, Scratch

CPU = torch.device("cpu")
STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    lines = STATUS.read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (5, 7), (1 << 12, 1 << 10)])
def test_they_are_zeros_that_can_be_written(shape: tuple[int, int], dtype: torch.dtype) -> None:
    found = lazy_zeros(shape, device=CPU, dtype=dtype)
    assert (tuple(found.shape), found.dtype, found.is_contiguous()) == (shape, dtype, True)
    assert not found.any()
    found.fill_(1)
    assert not lazy_zeros(shape, device=CPU, dtype=dtype).any()


@pytest.mark.skipif(not STATUS.exists(), reason="the resident memory is read from /proc")
def test_pages_take_memory_as_they_are_written() -> None:
    before = resident_bytes()
    pages = PlainPages(1 << 13, 32, 512, device=CPU, dtype=torch.float32)
    assert pages.nbytes == 1 << 29
    assert resident_bytes() - before < 1 << 26
    pages.write(torch.tensor([0, 32 * 8000]), torch.ones(2, 512))
    assert resident_bytes() - before < 1 << 26
    read = pages.read(slice(8000, 8001), Scratch())
    assert read.sum() == 512
    pages.rows_NX[: 1 << 16] = 1.0
    assert resident_bytes() - before > 1 << 26
