"""Products with plain (unquantized) matrices, in the form that is fastest for the number of rows.

X outputs, Y inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight_XY: Tensor, bias_X: Tensor | None = None) -> Tensor:
    """Return x w^T + b, (..., Y) to (..., X).

    Under torch.compile on a CPU, the product of a single row is written so that it fuses with neighbouring operators.
    """
    if compiles_one_row(x):
        y = (weight_XY * x.reshape(1, -1)).sum(-1)
        return (y if bias_X is None else y + bias_X).view(*x.shape[:-1], -1)
    return F.linear(x, weight_XY, bias_X)


def compiles_inference() -> bool:
    """Whether torch.compile is tracing a program without gradients."""
    return torch.compiler.is_compiling() and not torch.is_grad_enabled()


def compiles_one_row(x: Tensor) -> bool:
    """Whether torch.compile is tracing a single float32 row on a CPU without gradients."""
    if not compiles_inference():
        return False
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() == x.shape[-1]
