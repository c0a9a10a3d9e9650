"""Routed SwiGLU experts as grouped products whose offsets stay on the device: nothing is read back to the host.

``torch.nn.functional.grouped_mm`` has kernels for bfloat16 on CUDA devices, where the numbers between rows and the
addresses of tensors are multiples of 16 bytes. In float32 and float16 PyTorch itself copies the offsets to the host and
runs one product an expert.

X columns of any rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.tensors import accumulation_dtype, count_indices, needs_grad

_ALIGNMENT = 16  # bytes
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def takes_grouped(x_ND: Tensor) -> bool:
    """Whether grouped products compute experts on this device and in this dtype."""
    return x_ND.device.type not in ("cpu", "mps") and x_ND.dtype in _DTYPES


@dataclass(frozen=True, slots=True)
class _Sorted:
    """All M pairs sorted by expert, dropped ones last.

    ``order_M`` are positions in the flattened (N, K) pairs and ``place_M`` the inverse: where a pair was sorted to.
    ``offsets_E`` (int32) are where each expert's pairs end. ``dropped_M1`` marks what lies behind them, which grouped
    products leave unwritten; None where nothing is dropped.
    """

    order_M: Tensor
    place_M: Tensor
    tokens_M: Tensor
    offsets_E: Tensor
    dropped_M1: Tensor | None

    def written(self, rows_MX: Tensor) -> Tensor:
        """Put zeros, in place, where a grouped product wrote nothing."""
        return rows_MX if self.dropped_M1 is None else rows_MX.masked_fill_(self.dropped_M1, 0.0)

    def summed(self, rows_MD: Tensor, chosen: int) -> Tensor:
        """Sum every token's K rows in the order of its choices, (N, D) in float32 or wider: the same at every run."""
        each_NKD = rows_MD[self.place_M].view(-1, chosen, rows_MD.shape[1])
        return each_NKD.sum(1, dtype=accumulation_dtype(rows_MD))


def _sort(indices_NK: Tensor, kept_NK: Tensor | None, num_experts: int) -> _Sorted:
    expert_M = indices_NK.reshape(-1)
    if kept_NK is not None:
        expert_M = expert_M.masked_fill(~kept_NK.reshape(-1), num_experts)
    order_M = expert_M.argsort(stable=True)
    positions_M = torch.arange(len(expert_M), device=expert_M.device)
    place_M = torch.empty_like(order_M).scatter_(0, order_M, positions_M)
    offsets_E = count_indices(expert_M, num_experts + 1)[:num_experts].cumsum(0).to(torch.int32)
    dropped_M1 = None if kept_NK is None else (positions_M >= offsets_E[-1])[:, None]
    return _Sorted(order_M, place_M, order_M // indices_NK.shape[1], offsets_E, dropped_M1)


def grouped_swiglu_on_device(
    x_ND: Tensor,
    indices_NK: Tensor,
    weights_NK: Tensor,
    gate_up_EFD: Tensor,
    down_EDF: Tensor,
    kept_NK: Tensor | None = None,
) -> Tensor:
    """``experts.grouped_swiglu`` as three grouped products, six backward, whatever the number of experts.

    All shapes follow from the arguments' own, so that a step can be captured. Weights of another dtype than ``x`` are
    converted for each pass, and widths that are no multiples of 16 bytes filled up with zeros. Token sums are taken
    without atomic additions.
    """
    unit = _ALIGNMENT // x_ND.element_size()
    hidden, width = down_EDF.shape[1:]
    more_hidden, more_width = -hidden % unit, -width % unit
    if more_hidden or more_width:
        gate_up_E2FD = F.pad(gate_up_EFD.view(-1, 2, width, hidden), (0, more_hidden, 0, more_width))
        down_EDF = F.pad(down_EDF, (0, more_width, 0, more_hidden))
        x_ND = F.pad(x_ND, (0, more_hidden))
        y_ND = grouped_swiglu_on_device(x_ND, indices_NK, weights_NK, gate_up_E2FD.flatten(1, 2), down_EDF, kept_NK)
        return y_ND[:, :hidden]
    if needs_grad(x_ND, weights_NK, gate_up_EFD, down_EDF):
        trained_ND: Tensor = _GroupedSwiGLU.apply(  # type: ignore[no-untyped-call]
            x_ND, indices_NK, weights_NK, gate_up_EFD, down_EDF, kept_NK
        )
        return trained_ND
    pairs = _sort(indices_NK, kept_NK, gate_up_EFD.shape[0])
    return _forward(x_ND, pairs, weights_NK, gate_up_EFD, down_EDF)[0]


def _forward(
    x_ND: Tensor, pairs: _Sorted, weights_NK: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the layer's output (N, D), and the gate and up projections (M, 2F) that a backward pass needs."""
    dtype = x_ND.dtype
    gate_up_MF = F.grouped_mm(x_ND[pairs.tokens_M], gate_up_EFD.to(dtype).mT, offs=pairs.offsets_E)
    gate_MF, up_MF = gate_up_MF.chunk(2, dim=1)
    weights_M1 = weights_NK.reshape(-1)[pairs.order_M].unsqueeze(1)
    hidden_MF = F.silu(gate_MF).mul_(up_MF).mul_(weights_M1)
    y_MD = F.grouped_mm(hidden_MF, down_EDF.to(dtype).mT, offs=pairs.offsets_E)
    return pairs.summed(pairs.written(y_MD), weights_NK.shape[1]).to(dtype), gate_up_MF


class _GroupedSwiGLU(torch.autograd.Function):
    """Saves its inputs, the sort and the gate and up projections; the backward pass recomputes rows and activation."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        indices_NK: Tensor,
        weights_NK: Tensor,
        gate_up_EFD: Tensor,
        down_EDF: Tensor,
        kept_NK: Tensor | None,
    ) -> Tensor:
        pairs = _sort(indices_NK, kept_NK, gate_up_EFD.shape[0])
        y_ND, gate_up_MF = _forward(x_ND, pairs, weights_NK, gate_up_EFD, down_EDF)
        sort = (pairs.order_M, pairs.place_M, pairs.tokens_M, pairs.offsets_E, pairs.dropped_M1)
        ctx.save_for_backward(x_ND, weights_NK, gate_up_EFD, down_EDF, gate_up_MF, *sort)
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, Tensor, Tensor | None, Tensor | None, None]:
        x_ND, weights_NK, gate_up_EFD, down_EDF, gate_up_MF, *sort = ctx.saved_tensors
        pairs, (tokens, chosen), dtype = _Sorted(*sort), weights_NK.shape, x_ND.dtype
        for_gate_up, for_down = ctx.needs_input_grad[3:5]
        weights_M1 = weights_NK.reshape(-1)[pairs.order_M].unsqueeze(1)
        gate_MF, up_MF = gate_up_MF.chunk(2, dim=1)
        silu_MF = F.silu(gate_MF)
        hidden_MF = silu_MF * up_MF

        outer_MD = grad_ND.to(dtype)[pairs.tokens_M]
        slope_MF = F.grouped_mm(outer_MD, down_EDF.to(dtype), offs=pairs.offsets_E)
        wide = accumulation_dtype(slope_MF)
        grad_weights_M1 = pairs.written(torch.linalg.vecdot(slope_MF.to(wide), hidden_MF.to(wide))[:, None])
        grad_weights_NK = grad_weights_M1[pairs.place_M].view(tokens, chosen)
        slope_MF.mul_(weights_M1)
        grad_down_EDF = grad_gate_up_EFD = None
        if for_down:
            grad_down_EDF = F.grouped_mm(outer_MD.mT, hidden_MF.mul_(weights_M1), offs=pairs.offsets_E)
            grad_down_EDF = grad_down_EDF.to(down_EDF.dtype)

        grad_MF = torch.empty_like(gate_up_MF)
        grad_gate_MF, grad_up_MF = grad_MF.chunk(2, dim=1)
        torch.mul(slope_MF, silu_MF, out=grad_up_MF)
        grad_gate_MF.copy_(torch.ops.aten.silu_backward(slope_MF.mul_(up_MF), gate_MF))
        if for_gate_up:
            grad_gate_up_EFD = F.grouped_mm(grad_MF.mT, x_ND[pairs.tokens_M], offs=pairs.offsets_E)
            grad_gate_up_EFD = grad_gate_up_EFD.to(gate_up_EFD.dtype)
        grad_rows_MD = F.grouped_mm(grad_MF, gate_up_EFD.to(dtype), offs=pairs.offsets_E)
        grad_x_ND = pairs.summed(pairs.written(grad_rows_MD), chosen).to(dtype)
        return grad_x_ND, None, grad_weights_NK.to(weights_NK.dtype), grad_gate_up_EFD, grad_down_EDF, None
