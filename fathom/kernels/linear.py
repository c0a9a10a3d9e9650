"""Products with plain (unquantized) matrices, in the form that is fastest for the number of rows.

X outputs, Y inputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.elementwise import needs_grad
from fathom.kernels.products import are_float32_on_cpu, is_dense, onednn_is_faster, product


def linear(x: Tensor, weight_XY: Tensor, bias_X: Tensor | None = None) -> Tensor:
    """Return x w^T + b, (..., Y) to (..., X).

    Many float32 rows on a CPU are multiplied by the library that is faster there. Under torch.compile on a CPU, the
    product of a single row is written so that it fuses with neighbouring operators.
    """
    if compiles_one_row(x):
        y = (weight_XY * x.reshape(1, -1)).sum(-1)
        return (y if bias_X is None else y + bias_X).view(*x.shape[:-1], -1)
    if not _takes_onednn(x, weight_XY):
        return F.linear(x, weight_XY, bias_X)
    x_NY = x.reshape(-1, x.shape[-1])
    if needs_grad(x, weight_XY) or (bias_X is not None and needs_grad(bias_X)):
        y_NX: Tensor = _Linear.apply(x_NY, weight_XY, bias_X)  # type: ignore[no-untyped-call]
    else:
        y_NX = _linear(x_NY, weight_XY, bias_X)
    return y_NX.view(*x.shape[:-1], -1)


def _takes_onednn(x: Tensor, weight_XY: Tensor) -> bool:
    """Whether oneDNN computes this product, of plain tensors outside autocast."""
    if not are_float32_on_cpu(x, weight_XY) or torch.is_autocast_enabled("cpu"):
        return False
    if type(x) is not Tensor or type(weight_XY) not in (Tensor, torch.nn.Parameter):
        return False
    outputs, inputs = weight_XY.shape
    return onednn_is_faster(x.numel() // inputs, inputs, outputs) and is_dense(weight_XY)


def _linear(x_NY: Tensor, weight_XY: Tensor, bias_X: Tensor | None) -> Tensor:
    y_NX = product(x_NY, weight_XY.t())
    return y_NX if bias_X is None else y_NX.add_(bias_X)


class _Linear(torch.autograd.Function):
    """F.linear's gradients, each by ``product``."""

    @staticmethod
    def forward(ctx: Any, x_NY: Tensor, weight_XY: Tensor, bias_X: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NY, weight_XY)
        return _linear(x_NY, weight_XY, bias_X)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NX: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_NY, weight_XY = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            product(grad_NX, weight_XY) if for_x else None,
            product(grad_NX.t(), x_NY) if for_weight else None,
            grad_NX.sum(0) if for_bias else None,
        )


def compiles_inference() -> bool:
    """Whether torch.compile is tracing a program without gradients."""
    return torch.compiler.is_compiling() and not torch.is_grad_enabled()


def compiles_one_row(x: Tensor) -> bool:
    """Whether torch.compile is tracing a single float32 row on a CPU without gradients."""
    if not compiles_inference():
        return False
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() == x.shape[-1]
