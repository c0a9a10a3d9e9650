"""Routed SwiGLU experts with int8 and int4 weights.

X pairs of one expert, Y inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.errors import SpecError
from fathom.kernels.elementwise import swiglu
from fathom.kernels.experts import ExpertDispatch, dispatch_by_expert
from fathom.kernels.native.matrix import PackedExperts
from fathom.kernels.packed_products import packed_grouped_swiglu
from fathom.kernels.quantized_products import dequantized_matmul, fused_matmul, uses_fused_kernel
from fathom.kernels.tensors import accumulation_dtype, needs_grad
from fathom.kernels.weight_formats import ExpertStack, QuantizedExpertWeights, QuantizedWeight

# Up to this many pairs share whole buffers (fewest operators); more stream expert by expert.
_WHOLE_BUFFER_PAIRS = 1024


def quantized_grouped_swiglu(
    x_ND: Tensor,
    indices_NK: Tensor,
    weights_NK: Tensor,
    gate_up: ExpertStack,
    down: ExpertStack,
    kept_NK: Tensor | None = None,
    *,
    round_activations: bool = True,
) -> Tensor:
    """Sum over each token's K experts of weight times expert(token), as ``grouped_swiglu``; no gradient.

    ``gate_up`` holds matrices of (2F, D), ``down`` of (D, F). Rounding is that of ``quantized_linear``; between an
    expert's two fused products activations stay in bfloat16. One token alone reads the weights of its K experts only.

    Raises:
        SpecError: ``x`` or the routing weights require a gradient.
    """
    if needs_grad(x_ND, weights_NK):
        raise SpecError("weights", "quantized experts pass no gradient", "open the model with plain weights")
    if isinstance(gate_up, PackedExperts) and isinstance(down, PackedExperts):
        return packed_grouped_swiglu(
            x_ND, indices_NK, weights_NK, gate_up, down, kept_NK, round_activations=round_activations
        )
    if isinstance(gate_up, PackedExperts) or isinstance(down, PackedExperts):
        raise SpecError("experts", "have matrices of two libraries", "quantize both at once")
    if (
        kept_NK is None
        and x_ND.shape[0] == 1
        and uses_fused_kernel(x_ND, gate_up.experts[0])
        and uses_fused_kernel(x_ND, down.experts[0])
    ):
        return _one_token(x_ND, indices_NK, weights_NK, gate_up, down)
    dispatch = dispatch_by_expert(indices_NK, kept_NK, len(gate_up.experts))
    weights_M1 = weights_NK.reshape(-1)[dispatch.order_M].unsqueeze(1)
    if 0 < dispatch.order_M.numel() <= _WHOLE_BUFFER_PAIRS:
        return _few_tokens(x_ND, dispatch, weights_M1, gate_up, down)
    return _many_tokens(x_ND, dispatch, weights_M1, gate_up, down)


def _one_token(
    x_1D: Tensor, indices_1K: Tensor, weights_1K: Tensor, gate_up: QuantizedExpertWeights, down: QuantizedExpertWeights
) -> Tensor:
    """Two fused products per chosen expert and nine operators in all: the input is rounded once for all of them."""
    chosen, half_1D = indices_1K[0].tolist(), x_1D.to(torch.bfloat16)
    gate_up_KF = torch.cat([fused_matmul(half_1D, gate_up.experts[expert]) for expert in chosen])
    hidden_KF = swiglu(gate_up_KF).split_with_sizes([1] * len(chosen))
    y_KD = torch.cat(
        [fused_matmul(row_1F, down.experts[expert]) for row_1F, expert in zip(hidden_KF, chosen, strict=True)]
    )
    wide = accumulation_dtype(x_1D)
    return torch.mm(weights_1K.to(wide), y_KD.to(wide)).to(x_1D.dtype)


def _few_tokens(
    x_ND: Tensor,
    dispatch: ExpertDispatch,
    weights_M1: Tensor,
    gate_up: QuantizedExpertWeights,
    down: QuantizedExpertWeights,
) -> Tensor:
    """Two products per expert, everything else once for all pairs."""
    experts = [expert for expert, count in enumerate(dispatch.counts) if count]
    counts = [dispatch.counts[expert] for expert in experts]
    half_ND = x_ND.to(_activation_dtype(x_ND))
    rows = half_ND.index_select(0, dispatch.tokens_M).split_with_sizes(counts)
    gate_ups = [_product(x_XD, gate_up.experts[expert]) for expert, x_XD in zip(experts, rows, strict=True)]
    hidden = swiglu(torch.cat(gate_ups)).split_with_sizes(counts)
    y_MD = torch.cat([_product(x_XF, down.experts[expert]) for expert, x_XF in zip(experts, hidden, strict=True)])
    y_ND = torch.zeros_like(x_ND, dtype=accumulation_dtype(x_ND))
    return y_ND.index_add_(0, dispatch.tokens_M, y_MD * weights_M1.to(y_ND.dtype)).to(x_ND.dtype)


def _many_tokens(
    x_ND: Tensor,
    dispatch: ExpertDispatch,
    weights_M1: Tensor,
    gate_up: QuantizedExpertWeights,
    down: QuantizedExpertWeights,
) -> Tensor:
    """Run expert by expert, so that one expert's pairs exist at a time."""
    y_ND = torch.zeros_like(x_ND, dtype=accumulation_dtype(x_ND))
    half_ND = x_ND.to(_activation_dtype(x_ND))
    for expert, pairs in dispatch.slices():
        tokens_X = dispatch.tokens_M[pairs]
        hidden_XF = swiglu(_product(half_ND.index_select(0, tokens_X), gate_up.experts[expert]))
        y_XD = _product(hidden_XF, down.experts[expert])
        y_ND.index_add_(0, tokens_X, y_XD * weights_M1[pairs].to(y_ND.dtype))
    return y_ND.to(x_ND.dtype)


def _activation_dtype(x_ND: Tensor) -> torch.dtype:
    """Return the dtype of the inputs and outputs of an expert's products."""
    return torch.bfloat16 if x_ND.device.type == "cpu" and x_ND.dtype == torch.float32 else x_ND.dtype


def _product(x_XY: Tensor, qweight: QuantizedWeight) -> Tensor:
    """Multiply rows in their own dtype, (X, outputs) like them."""
    return (
        fused_matmul(x_XY, qweight)
        if uses_fused_kernel(x_XY, qweight) and x_XY.dtype == torch.bfloat16
        else dequantized_matmul(x_XY, qweight)
    )
