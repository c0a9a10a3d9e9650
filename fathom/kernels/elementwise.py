"""Normalisation, rotation and activation with hand-written backward passes: fewer operators, less memory saved.

Each is a function of tensors; without gradients it skips autograd altogether, since the cost of decoding one token is
mostly the number of operators. Dimensions as in ``reference``.

X rows; Z = R / 2 rotated pairs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels import reference
from fathom.kernels.native import training as native
from fathom.kernels.tensors import accumulation_dtype, needs_grad
from fathom.spec.rope import RopeLayout

_MANY_NUMBERS = 2**17  # measured: below, PyTorch's own norm is as fast


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide by the root mean square of the last dimension, then multiply by ``weight``; like ``x`` in dtype.

    Half-precision inputs are normalised in float32 and rounded before the product, as Llama does. A single row on a
    CPU takes three operators, its scale being a Python number. Many rows take six, which are several times faster there
    than PyTorch's own operator. A GPU has one kernel for all of it, which rounds once, after the product.
    """
    if x.device.type not in ("cpu", "mps") and x.dtype == weight.dtype:
        return F.rms_norm(x, weight.shape, weight, eps)
    if needs_grad(x, weight):
        y: Tensor = _RmsNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
        return y
    if x.dtype != weight.dtype or x.dtype not in (torch.float32, torch.float64):
        return reference.rms_norm(x, weight, eps)
    if x.device.type == "cpu" and x.numel() == weight.numel() and not torch.compiler.is_compiling():
        norm = float(torch.linalg.vector_norm(x))
        return torch.mul(x, weight).mul_((norm * norm / weight.numel() + eps) ** -0.5)
    if x.device.type != "cpu" or x.numel() < _MANY_NUMBERS or torch.compiler.is_compiling():
        return F.rms_norm(x, weight.shape, weight, eps)
    inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return torch.mul(x, inverse).mul_(weight)


class _RmsNorm(torch.autograd.Function):
    """Saves its result, which the next product saves too, and one number per row; PyTorch computes from the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.native = native.takes_norm(x, weight)
        if ctx.native:
            y, inverse_X = native.rms_norm(x, weight, eps)
            ctx.save_for_backward(y, weight, inverse_X)
            return y
        wide = x.to(accumulation_dtype(x))
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        normed: Tensor = (wide * inverse).to(x.dtype)
        return normed.mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        if ctx.native:
            return *native.rms_norm_gradients(x, weight, inverse, grad), None
        wide = accumulation_dtype(x)
        normed, grad = x * inverse, grad.to(wide)
        product = grad * normed
        grad_weight = product.flatten(0, -2).sum(0) if x.ndim > 1 else product
        mean = (product @ weight.to(wide)).div_(x.shape[-1]).unsqueeze(-1)
        grad_x = torch.addcmul(grad * weight, normed, mean, value=-1).mul_(inverse)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None


def rotate(x_BTHR: Tensor, cos_BTZ: Tensor, sin_BTZ: Tensor, layout: RopeLayout) -> Tensor:
    """Rotate each pair of columns by the angle of its position; like ``x`` in dtype.

    ``cos`` and ``sin`` are float32 tables of (B or 1, T, Z), one column a pair, without gradient. ``half``
    pairs columns (p, p + R/2), ``interleaved`` pairs (2p, 2p + 1). Its gradient is the inverse rotation. Under
    torch.compile the reference runs, which it fuses; it generates no code for complex numbers.
    """
    if torch.compiler.is_compiling():
        return reference.rotate(x_BTHR, cos_BTZ, sin_BTZ, layout)
    if needs_grad(x_BTHR):
        y: Tensor = _Rotate.apply(x_BTHR, cos_BTZ, sin_BTZ, layout)  # type: ignore[no-untyped-call]
        return y
    return _rotated(x_BTHR, cos_BTZ, sin_BTZ, layout)


class _Rotate(torch.autograd.Function):
    """Saves only the tables."""

    @staticmethod
    def forward(ctx: Any, x_BTHR: Tensor, cos_BTZ: Tensor, sin_BTZ: Tensor, layout: RopeLayout) -> Tensor:
        ctx.save_for_backward(cos_BTZ, sin_BTZ)
        ctx.layout = layout
        return _rotated(x_BTHR, cos_BTZ, sin_BTZ, layout)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTHR: Tensor) -> tuple[Tensor, None, None, None]:
        cos_BTZ, sin_BTZ = ctx.saved_tensors
        return _rotated(grad_BTHR, cos_BTZ, -sin_BTZ, ctx.layout), None, None, None


def _rotated(x_BTHR: Tensor, cos_BTZ: Tensor, sin_BTZ: Tensor, layout: RopeLayout) -> Tensor:
    wide = x_BTHR.to(accumulation_dtype(x_BTHR))
    if layout == "half":
        cos, sin = cos_BTZ.unsqueeze(2), sin_BTZ.unsqueeze(2)
        first, second = wide.chunk(2, dim=-1)
        turned = torch.empty(x_BTHR.shape, dtype=wide.dtype, device=wide.device)
        left, right = turned.chunk(2, dim=-1)
        torch.mul(first, cos, out=left).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=right).addcmul_(first, sin)
    else:
        turn = torch.complex(cos_BTZ, sin_BTZ).unsqueeze(2)
        *strides, last = wide.stride()
        if last != 1 or wide.storage_offset() % 2 or any(stride % 2 for stride in strides):
            wide = wide.clone(memory_format=torch.contiguous_format)
        pairs = torch.view_as_complex(wide.view(*wide.shape[:-1], -1, 2))
        turned = torch.view_as_real(pairs * turn).flatten(-2)
    return turned.to(x_BTHR.dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, where gate is the first half of the last dimension (2F) and up the second; returns (..., F)."""
    if needs_grad(gate_up):
        y: Tensor = _SwiGLU.apply(gate_up)  # type: ignore[no-untyped-call]
        return y
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def silu_multiply(gate_up_XF: Tensor, scale_X: Tensor | None, out_XF: Tensor) -> Tensor:
    """Write silu(gate) * up, times a number for each row, to ``out`` and return it. It has no gradient."""
    if native.takes(gate_up_XF, out_XF, *_given(scale_X)):
        native.silu_multiply(gate_up_XF, scale_X, out_XF)
        return out_XF
    gate_XF, up_XF = gate_up_XF.chunk(2, dim=1)
    torch.ops.aten.silu.out(gate_XF, out=out_XF).mul_(up_XF)
    return out_XF if scale_X is None else out_XF.mul_(scale_X.unsqueeze(1))


def silu_multiply_gradients(
    gate_up_XF: Tensor, scale_X: Tensor | None, slope_XF: Tensor, grad_gate_up_XF: Tensor, grad_scale_X: Tensor | None
) -> Tensor:
    """Write the gradients of ``silu_multiply``, whose result's gradient is ``slope``; return that result.

    ``slope`` is overwritten.
    """
    if native.takes(gate_up_XF, slope_XF, grad_gate_up_XF, *_given(scale_X, grad_scale_X)):
        native.silu_multiply_gradients(gate_up_XF, scale_X, slope_XF, grad_gate_up_XF, grad_scale_X)
        return slope_XF
    gate_XF, up_XF = gate_up_XF.chunk(2, dim=1)
    grad_gate_XF, grad_up_XF = grad_gate_up_XF.chunk(2, dim=1)
    silu_XF = F.silu(gate_XF)
    hidden_XF = silu_XF * up_XF
    if grad_scale_X is not None:
        wide = grad_scale_X.dtype
        torch.linalg.vecdot(slope_XF.to(wide), hidden_XF.to(wide), out=grad_scale_X)
    if scale_X is not None:
        slope_XF.mul_(scale_X.unsqueeze(1))
        hidden_XF.mul_(scale_X.unsqueeze(1))
    torch.mul(slope_XF, silu_XF, out=grad_up_XF)
    torch.ops.aten.silu_backward.grad_input(slope_XF.mul_(up_XF), gate_XF, grad_input=grad_gate_XF)
    return hidden_XF


def _given(*tensors: Tensor | None) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def add_rows(total_ND: Tensor, places_X: Tensor, rows_XD: Tensor) -> None:
    """Add each row to that of ``total`` whose number is its place, in ``total``'s dtype. It has no gradient."""
    if native.takes(total_ND, rows_XD):
        native.add_rows(total_ND, places_X, rows_XD)
    else:
        total_ND.index_add_(0, places_X, rows_XD.to(total_ND.dtype))


class _SwiGLU(torch.autograd.Function):
    """Saves the input alone; the backward pass recomputes silu."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.mul(grad, F.silu(gate), out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return grad_gate_up
