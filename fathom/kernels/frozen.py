"""Products with weights that are not trained: adapted experts, and 8- or 4-bit matrices that pass a gradient through.

X pairs of one expert; of one matrix X outputs and Y inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.elementwise import swiglu
from fathom.kernels.experts import dispatch_by_expert
from fathom.kernels.products import add_product, product
from fathom.kernels.tensors import accumulation_dtype, autocasts
from fathom.kernels.weight_formats import WeightMatrix, dequantize, row_tiles

_TILE_WEIGHTS = 2**20

ExpertProduct = Callable[[Tensor, int], Tensor]
"""Rows (X, inputs) and the index of an expert to (X, outputs)."""


def frozen_quantized_linear(x: Tensor, qweight: WeightMatrix) -> Tensor:
    """Return x w^T, (..., Y) to (..., X), with w dequantized tile by tile; the gradient flows to ``x`` alone.

    The same product with and without gradients, in ``x``'s dtype or autocast's: what samples and what trains agree.
    """
    device = x.device.type
    if autocasts(device):
        x = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            return frozen_quantized_linear(x, qweight)
    y_NX: Tensor = _FrozenLinear.apply(x.reshape(-1, qweight.columns), qweight)  # type: ignore[no-untyped-call]
    return y_NX.view(*x.shape[:-1], qweight.rows)


class _FrozenLinear(torch.autograd.Function):
    """Saves nothing but the quantized weights, which it dequantizes again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_NY: Tensor, qweight: WeightMatrix) -> Tensor:
        ctx.qweight = qweight
        y_NX = x_NY.new_empty(x_NY.shape[0], qweight.rows)
        for tile in row_tiles(qweight, _TILE_WEIGHTS):
            y_NX[:, tile] = product(x_NY, dequantize(qweight, x_NY.dtype, tile).t())
        return y_NX

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NX: Tensor) -> tuple[Tensor, None]:
        qweight = ctx.qweight
        grad_NY = grad_NX.new_zeros(grad_NX.shape[0], qweight.columns)
        for tile in row_tiles(qweight, _TILE_WEIGHTS):
            add_product(grad_NY, grad_NX[:, tile], dequantize(qweight, grad_NX.dtype, tile))
        return grad_NY, None


def adapted_swiglu(
    x_ND: Tensor,
    indices_NK: Tensor,
    weights_NK: Tensor,
    kept_NK: Tensor | None,
    num_experts: int,
    gate_up: ExpertProduct,
    down: ExpertProduct,
) -> Tensor:
    """Sum over each token's K experts of weight times expert(token), as ``grouped_swiglu``; (N, D) like ``x``.

    Each expert's products are ``gate_up``, (X, D) to (X, 2F), and ``down``, (X, F) to (X, D), over the slice of tokens
    sorted by expert. Gradients are autograd's: to ``x``, the routing weights, and what the products hold.
    """
    dispatch = dispatch_by_expert(indices_NK, kept_NK, num_experts)
    experts = [expert for expert, count in enumerate(dispatch.counts) if count]
    if not experts:
        return torch.zeros_like(x_ND)
    weights_M1 = weights_NK.reshape(-1)[dispatch.order_M].unsqueeze(1)
    rows = x_ND.index_select(0, dispatch.tokens_M).split_with_sizes([dispatch.counts[expert] for expert in experts])
    y_MD = torch.cat([down(swiglu(gate_up(x_XD, expert)), expert) for expert, x_XD in zip(experts, rows, strict=True)])
    y_ND = torch.zeros_like(x_ND, dtype=accumulation_dtype(x_ND))
    return y_ND.index_add(0, dispatch.tokens_M, y_MD.to(y_ND.dtype) * weights_M1.to(y_ND.dtype)).to(x_ND.dtype)
