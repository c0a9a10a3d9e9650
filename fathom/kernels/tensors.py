"""What every kernel asks of its tensors, and counting without a wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def needs_grad(*tensors: Tensor) -> bool:
    """Whether autograd records an operation on these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def autocasts(device_type: str) -> bool:
    """Whether autocast is on for a kind of device; never for those that PyTorch has none for, such as meta."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 products of CUDA devices without TF32."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype to accumulate in: float32, or wider where the tensor is."""
    return torch.promote_types(tensor.dtype, torch.float32)


def count_indices(indices_N: Tensor, bins: int) -> Tensor:
    """How often each of 0 to ``bins`` - 1 occurs: (bins,) int64. On a GPU ``bincount`` would wait for the largest."""
    if indices_N.device.type == "cpu":
        return torch.bincount(indices_N, minlength=bins)
    counts = torch.zeros(bins, dtype=torch.int64, device=indices_N.device)
    return counts.scatter_add_(0, indices_N, torch.ones_like(indices_N, dtype=torch.int64))
