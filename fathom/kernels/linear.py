"""Products with plain (unquantized) matrices, in the form that is fastest for the number of rows.

X outputs, Y inputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.elementwise import silu_multiply, silu_multiply_gradients, swiglu
from fathom.kernels.products import are_float32_on_cpu, is_dense, onednn_is_faster, product
from fathom.kernels.tensors import autocasts, needs_grad


def linear(x: Tensor, weight_XY: Tensor, bias_X: Tensor | None = None) -> Tensor:
    """Return x w^T + b, (..., Y) to (..., X).

    Many float32 rows on a CPU are multiplied by the library that is faster there.
    """
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


def swiglu_linear(gate_up: Tensor, weight_DF: Tensor) -> Tensor:
    """Return ``swiglu`` of (..., 2F) times the transposed weight, (..., D); its gradients save ``gate_up`` alone."""
    if autocasts(gate_up.device.type):
        weight_DF = weight_DF.to(gate_up.dtype)
    if torch.compiler.is_compiling() or gate_up.dtype != weight_DF.dtype or not needs_grad(gate_up, weight_DF):
        return linear(swiglu(gate_up), weight_DF)
    y_ND: Tensor = _SwiGLULinear.apply(gate_up.reshape(-1, gate_up.shape[-1]), weight_DF)  # type: ignore[no-untyped-call]
    return y_ND.view(*gate_up.shape[:-1], -1)


class _SwiGLULinear(torch.autograd.Function):
    """Saves its inputs; the backward pass computes the activation again."""

    @staticmethod
    def forward(ctx: Any, gate_up_NF: Tensor, weight_DF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_NF, weight_DF)
        return product(_activation(gate_up_NF), weight_DF.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, Tensor | None]:
        gate_up_NF, weight_DF = ctx.saved_tensors
        for_input, for_weight = ctx.needs_input_grad
        if not for_input:
            return None, product(grad_ND.t(), _activation(gate_up_NF)) if for_weight else None
        slope_NF, grad_gate_up_NF = product(grad_ND, weight_DF), torch.empty_like(gate_up_NF)
        hidden_NF = silu_multiply_gradients(gate_up_NF, None, slope_NF, grad_gate_up_NF, None)
        return grad_gate_up_NF, product(grad_ND.t(), hidden_NF) if for_weight else None


def _activation(gate_up_NF: Tensor) -> Tensor:
    rows, width = gate_up_NF.shape
    return silu_multiply(gate_up_NF, None, gate_up_NF.new_empty(rows, width // 2))
