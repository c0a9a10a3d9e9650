"""Memory for tensors, small and large, is theirs alone and goes with them."""

from __future__ import annotations

import gc
import resource
import sys

import pytest
import torch

from fathom.checkpoint.allocation import empty_cpu_tensor


@pytest.mark.parametrize("shape", [(), (0, 3), (5, 7), (3, 1024, 4096)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn])
def test_a_tensor_of_that_shape_and_type_can_be_written(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = empty_cpu_tensor(shape, dtype)
    assert (tuple(tensor.shape), tensor.dtype, tensor.is_contiguous()) == (shape, dtype, True)
    other = empty_cpu_tensor(shape, dtype)
    tensor.fill_(1)
    other.fill_(2)
    assert torch.all(tensor.float() == 1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads ru_maxrss in KiB")
def test_memory_goes_with_the_tensor() -> None:
    gc.collect()
    empty_cpu_tensor((1 << 26,), torch.uint8).fill_(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20):
        empty_cpu_tensor((1 << 26,), torch.uint8).fill_(1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 17
