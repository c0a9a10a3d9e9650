"""Products with weights that are not trained: adapted experts, and 8- or 4-bit matrices that pass a gradient through.

Dimensions: N tokens, K experts per token or inputs, P pairs of a token and an expert that were kept, D hidden size, E
experts, F expert width, C pairs of one expert, R outputs of a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.elementwise import accumulation_dtype, swiglu
from fathom.kernels.experts import dispatch_by_expert
from fathom.kernels.weight_formats import QuantizedWeight, dequantize, row_tiles

_TILE_WEIGHTS = 2**20

ExpertProduct = Callable[[Tensor, int], Tensor]
"""Rows (C, inputs) and the index of an expert to (C, outputs)."""


def frozen_quantized_linear(x: Tensor, qweight: QuantizedWeight) -> Tensor:
    """Return x w^T, (..., K) to (..., N), with w dequantized tile by tile; the gradient flows to ``x`` alone.

    The same product with and without gradients, in ``x``'s dtype or autocast's: what samples and what trains agree.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            return frozen_quantized_linear(x, qweight)
    y_MN: Tensor = _FrozenLinear.apply(x.reshape(-1, qweight.columns), qweight)  # type: ignore[no-untyped-call]
    return y_MN.view(*x.shape[:-1], qweight.rows)


class _FrozenLinear(torch.autograd.Function):
    """Saves nothing but the quantized weights, which it dequantizes again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, qweight: QuantizedWeight) -> Tensor:
        ctx.qweight = qweight
        y_MN = x_MK.new_empty(x_MK.shape[0], qweight.rows)
        for tile in row_tiles(qweight, _TILE_WEIGHTS):
            y_MN[:, tile] = torch.mm(x_MK, dequantize(qweight, x_MK.dtype, tile).t())
        return y_MN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MN: Tensor) -> tuple[Tensor, None]:
        qweight = ctx.qweight
        grad_MK = grad_MN.new_zeros(grad_MN.shape[0], qweight.columns)
        for tile in row_tiles(qweight, _TILE_WEIGHTS):
            grad_MK.addmm_(grad_MN[:, tile], dequantize(qweight, grad_MN.dtype, tile))
        return grad_MK, None


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

    Each expert's products are ``gate_up``, (C, D) to (C, 2F), and ``down``, (C, F) to (C, D), over the slice of tokens
    sorted by expert. Gradients are autograd's: to ``x``, the routing weights, and what the products hold.
    """
    dispatch = dispatch_by_expert(indices_NK, kept_NK, num_experts)
    experts = [expert for expert, count in enumerate(dispatch.counts) if count]
    if not experts:
        return torch.zeros_like(x_ND)
    weights_P1 = weights_NK.reshape(-1)[dispatch.order_P].unsqueeze(1)
    rows = x_ND.index_select(0, dispatch.tokens_P).split_with_sizes([dispatch.counts[expert] for expert in experts])
    y_PD = torch.cat([down(swiglu(gate_up(x_CD, expert)), expert) for expert, x_CD in zip(experts, rows, strict=True)])
    y_ND = torch.zeros_like(x_ND, dtype=accumulation_dtype(x_ND))
    return y_ND.index_add(0, dispatch.tokens_P, y_PD.to(y_ND.dtype) * weights_P1.to(y_ND.dtype)).to(x_ND.dtype)
