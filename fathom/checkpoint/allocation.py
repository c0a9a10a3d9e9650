"""Memory for tensors that are read: huge pages for large ones, which the kernel clears in a quarter of the time."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

_LARGE = 1 << 24
"""Bytes from which the allocator asks the kernel for fresh memory for each tensor anyway."""


def empty_cpu_tensor(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a tensor on the CPU whose numbers are anything, like ``torch.empty``."""
    nbytes = math.prod(shape) * dtype.itemsize
    if sys.platform != "linux" or nbytes < _LARGE:
        return torch.empty(tuple(shape), dtype=dtype)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(tuple(shape))
