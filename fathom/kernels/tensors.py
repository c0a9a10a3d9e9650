"""Two questions that every kernel asks of its tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def needs_grad(*tensors: Tensor) -> bool:
    """Whether autograd records an operation on these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype to accumulate in: float32, or wider where the tensor is."""
    return torch.promote_types(tensor.dtype, torch.float32)
