"""A product with a plain matrix, in the form that is fastest for how many rows there are and who runs it.

M rows, K inputs, N outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """Return x w^T + b, (..., K) to (..., N).

    The compiler makes one row's product on a CPU a loop of its own, without a call, fused with what stands around it.
    """
    if compiles_one_row(x):
        y = (weight_NK * x.reshape(1, -1)).sum(-1)
        return (y if bias_N is None else y + bias_N).view(*x.shape[:-1], -1)
    return F.linear(x, weight_NK, bias_N)


def compiles_inference() -> bool:
    """Whether the compiler is tracing a program that needs no gradient."""
    return torch.compiler.is_compiling() and not torch.is_grad_enabled()


def compiles_one_row(x: Tensor) -> bool:
    """Whether a single float32 row, without gradient, is being compiled for a CPU."""
    if not compiles_inference():
        return False
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() == x.shape[-1]
