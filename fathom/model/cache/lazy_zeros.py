"""Zeros that take memory once they are written: PyTorch's own are written where they are allocated."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor


def lazy_zeros(shape: Sequence[int], *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return zeros; on a CPU of Linux or macOS the operating system commits their memory at the first write."""
    nbytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not nbytes or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.zeros(tuple(shape), device=device, dtype=dtype)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(tuple(shape))
