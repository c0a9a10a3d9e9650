"""Routed SwiGLU experts as products over slices sorted by expert, with a hand-written backward pass.

X pairs of one expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.elementwise import add_rows, silu_multiply, silu_multiply_gradients
from fathom.kernels.grouped_experts import grouped_swiglu_on_device, takes_grouped
from fathom.kernels.products import product
from fathom.kernels.tensors import accumulation_dtype, autocasts, needs_grad

# Without gradients, up to this many pairs run through whole buffers (fewest operators); more stream expert by expert.
_WHOLE_BUFFER_PAIRS = 4096


@dataclass(frozen=True, slots=True)
class ExpertDispatch:
    """The kept pairs sorted by expert: computed once, and used forward and backward.

    ``order_M`` are positions in the flattened (N, K) pairs, sorted by expert and within an expert by token;
    ``counts`` are the pairs of each expert.
    """

    order_M: Tensor
    tokens_M: Tensor
    counts: list[int]

    def slices(self) -> Iterator[tuple[int, slice]]:
        """Each expert that has tokens, with its slice of the sorted pairs."""
        start = 0
        for expert, count in enumerate(self.counts):
            if count:
                yield expert, slice(start, start + count)
            start += count


def dispatch_by_expert(indices_NK: Tensor, kept_NK: Tensor | None, num_experts: int) -> ExpertDispatch:
    """Sort the kept pairs by expert; the counts are copied to the host, for products expert by expert."""
    expert_M = indices_NK.reshape(-1)
    if kept_NK is not None:
        expert_M = expert_M.masked_fill(~kept_NK.reshape(-1), num_experts)
    counts = torch.bincount(expert_M, minlength=num_experts).tolist()[:num_experts]
    order_M = expert_M.argsort(stable=True)[: sum(counts)]
    return ExpertDispatch(order_M, order_M.div(indices_NK.shape[1], rounding_mode="floor"), counts)


def grouped_swiglu(
    x_ND: Tensor,
    indices_NK: Tensor,
    weights_NK: Tensor,
    gate_up_EFD: Tensor,
    down_EDF: Tensor,
    kept_NK: Tensor | None = None,
) -> Tensor:
    """Sum over each token's K experts of weight times expert(token); returns (N, D) in ``x``'s dtype.

    ``gate_up_EFD`` is (E, 2F, D). Pairs where ``kept_NK`` is False contribute nothing and cost nothing. Under autocast
    the products run in its dtype. While training, one (M, 2F) tensor is saved for the backward pass. One token alone
    reads the weights of its K experts and no others. On a GPU these are grouped products (``grouped_experts``).
    """
    device = x_ND.device.type
    if autocasts(device):
        compute = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            y_ND = grouped_swiglu(x_ND.to(compute), indices_NK, weights_NK, gate_up_EFD, down_EDF, kept_NK)
        return y_ND.to(x_ND.dtype)
    if takes_grouped(x_ND):
        return grouped_swiglu_on_device(x_ND, indices_NK, weights_NK, gate_up_EFD, down_EDF, kept_NK)
    if needs_grad(x_ND, weights_NK, gate_up_EFD, down_EDF):
        trained_ND: Tensor = _GroupedSwiGLU.apply(  # type: ignore[no-untyped-call]
            x_ND, indices_NK, weights_NK, gate_up_EFD, down_EDF, kept_NK
        )
        return trained_ND
    if kept_NK is None and x_ND.shape[0] == 1:
        return _one_token(x_ND, indices_NK, weights_NK, gate_up_EFD, down_EDF)
    dispatch = dispatch_by_expert(indices_NK, kept_NK, gate_up_EFD.shape[0])
    few = kept_NK is None and 0 < indices_NK.numel() <= _WHOLE_BUFFER_PAIRS
    if few and gate_up_EFD.dtype == down_EDF.dtype == x_ND.dtype:
        return _few_tokens(x_ND, dispatch, weights_NK, gate_up_EFD, down_EDF)
    return _forward(x_ND, dispatch, weights_NK.reshape(-1)[dispatch.order_M], gate_up_EFD, down_EDF, None)


def _one_token(x_1D: Tensor, indices_1K: Tensor, weights_1K: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    """Matrix-vector products of the chosen experts only: about four operators per expert and four in all."""
    chosen, x_D = indices_1K[0].tolist(), x_1D[0]
    gate_up_KF = x_1D.new_empty(len(chosen), gate_up_EFD.shape[1])
    for row_F, expert in zip(gate_up_KF.unbind(0), chosen, strict=True):
        torch.mv(gate_up_EFD[expert].to(x_D.dtype), x_D, out=row_F)
    gate_KF, up_KF = gate_up_KF.chunk(2, dim=1)
    hidden_KF = F.silu(gate_KF).mul_(up_KF).mul_(weights_1K.view(-1, 1))
    y_D = x_D.new_zeros(x_D.shape[0], dtype=accumulation_dtype(x_D))
    for hidden_F, expert in zip(hidden_KF.unbind(0), chosen, strict=True):
        down_DF = down_EDF[expert].to(x_D.dtype)
        if y_D.dtype == x_D.dtype:
            y_D.addmv_(down_DF, hidden_F)
        else:
            y_D.add_(torch.mv(down_DF, hidden_F))
    return y_D.to(x_D.dtype).unsqueeze(0)


def _few_tokens(
    x_ND: Tensor, dispatch: ExpertDispatch, weights_NK: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Two products per expert, everything else once for all pairs: views are made in bulk, not one by one."""
    experts = [expert for expert, count in enumerate(dispatch.counts) if count]
    counts = [dispatch.counts[expert] for expert in experts]
    rows_MD = x_ND.index_select(0, dispatch.tokens_M)
    gate_up_MF = x_ND.new_empty(rows_MD.shape[0], gate_up_EFD.shape[1])
    gate_up_DF, down_FD = gate_up_EFD.mT.unbind(0), down_EDF.mT.unbind(0)
    rows, gate_ups = rows_MD.split_with_sizes(counts), gate_up_MF.split_with_sizes(counts)
    for expert, x_XD, gate_up_XF in zip(experts, rows, gate_ups, strict=True):
        product(x_XD, gate_up_DF[expert], gate_up_XF)
    gate_MF, up_MF = gate_up_MF.chunk(2, dim=1)
    hidden_MF = F.silu(gate_MF).mul_(up_MF).mul_(weights_NK.reshape(-1)[dispatch.order_M].unsqueeze(1))
    for expert, hidden_XF, y_XD in zip(experts, hidden_MF.split_with_sizes(counts), rows, strict=True):
        product(hidden_XF, down_FD[expert], y_XD)
    y_ND = torch.zeros_like(x_ND, dtype=accumulation_dtype(x_ND))
    return y_ND.index_add_(0, dispatch.tokens_M, rows_MD.to(y_ND.dtype)).to(x_ND.dtype)


def _forward(
    x_ND: Tensor,
    dispatch: ExpertDispatch,
    weights_M: Tensor,
    gate_up_EFD: Tensor,
    down_EDF: Tensor,
    saved_MF: Tensor | None,
) -> Tensor:
    """Run expert by expert through buffers of the largest expert's size, which stay in the processor's cache.

    ``saved_MF`` (M, 2F) receives the gate and up projections when a backward pass will need them.
    """
    most, width = max(dispatch.counts), down_EDF.shape[2]
    rows, hidden, gate_up = x_ND.new_empty(most, x_ND.shape[1]), x_ND.new_empty(most, width), saved_MF
    if gate_up is None:
        gate_up = x_ND.new_empty(most, 2 * width)
    y_ND = torch.zeros_like(x_ND, dtype=accumulation_dtype(x_ND))
    for expert, pairs in dispatch.slices():
        tokens_X, count = dispatch.tokens_M[pairs], pairs.stop - pairs.start
        x_XD = torch.index_select(x_ND, 0, tokens_X, out=rows[:count])
        gate_up_XF = gate_up[pairs] if saved_MF is not None else gate_up[:count]
        product(x_XD, gate_up_EFD[expert].to(x_ND.dtype).t(), gate_up_XF)
        hidden_XF = silu_multiply(gate_up_XF, weights_M[pairs], hidden[:count])
        product(hidden_XF, down_EDF[expert].to(x_ND.dtype).t(), x_XD)
        add_rows(y_ND, tokens_X, x_XD)
    return y_ND.to(x_ND.dtype)


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
        dispatch = dispatch_by_expert(indices_NK, kept_NK, gate_up_EFD.shape[0])
        weights_M = weights_NK.reshape(-1)[dispatch.order_M]
        saved_MF = x_ND.new_empty(dispatch.order_M.shape[0], gate_up_EFD.shape[1])
        y_ND = _forward(x_ND, dispatch, weights_M, gate_up_EFD, down_EDF, saved_MF)
        ctx.save_for_backward(x_ND, weights_M, gate_up_EFD, down_EDF, saved_MF, dispatch.order_M, dispatch.tokens_M)
        ctx.counts, ctx.weights_shape = dispatch.counts, weights_NK.shape
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, Tensor, Tensor, Tensor, None]:
        x_ND, weights_M, gate_up_EFD, down_EDF, saved_MF, order_M, tokens_M = ctx.saved_tensors
        dispatch = ExpertDispatch(order_M, tokens_M, ctx.counts)
        gradients = _Gradients(x_ND, grad_ND, dispatch, weights_M, gate_up_EFD, down_EDF)
        for expert, pairs in dispatch.slices():
            gradients.add_expert(expert, pairs, saved_MF[pairs])
        grad_weights_N = torch.zeros(ctx.weights_shape, dtype=weights_M.dtype, device=weights_M.device).view(-1)
        grad_weights_N[order_M] = gradients.weights_M.to(weights_M.dtype)
        grad_weights_NK = grad_weights_N.view(ctx.weights_shape)
        return gradients.x_ND.to(x_ND.dtype), None, grad_weights_NK, gradients.gate_up_EFD, gradients.down_EDF, None


class _Gradients:
    """The four gradients, and buffers of the largest expert's size to compute them."""

    def __init__(
        self,
        inputs_ND: Tensor,
        outer_ND: Tensor,
        dispatch: ExpertDispatch,
        weights: Tensor,
        gate_up_weight: Tensor,
        down_weight: Tensor,
    ) -> None:
        self._inputs_ND, self._outer_ND, self._dispatch, self._weights_M = inputs_ND, outer_ND, dispatch, weights
        self._gate_up_weight, self._down_weight = gate_up_weight, down_weight
        most, (_, hidden_size, width) = max(dispatch.counts), down_weight.shape
        self._rows, self._outer = (inputs_ND.new_empty(most, hidden_size) for _ in range(2))
        self._slope, self._gate_up = inputs_ND.new_empty(most, width), inputs_ND.new_empty(most, 2 * width)
        self.x_ND = torch.zeros_like(inputs_ND, dtype=accumulation_dtype(inputs_ND))
        self.weights_M = inputs_ND.new_empty(weights.shape, dtype=accumulation_dtype(inputs_ND))
        self.gate_up_EFD, self.down_EDF = torch.empty_like(gate_up_weight), torch.empty_like(down_weight)
        idle = [expert for expert, count in enumerate(dispatch.counts) if not count]
        if idle:
            self.gate_up_EFD[idle] = 0
            self.down_EDF[idle] = 0

    def add_expert(self, expert: int, pairs: slice, gate_up_XF: Tensor) -> None:
        """Back-propagate through one expert. Its output is down(w * silu(gate) * up), w the pair's weight."""
        count, dtype = pairs.stop - pairs.start, self._inputs_ND.dtype
        tokens_X = self._dispatch.tokens_M[pairs]
        x_XD = torch.index_select(self._inputs_ND, 0, tokens_X, out=self._rows[:count])
        outer_XD = torch.index_select(self._outer_ND, 0, tokens_X, out=self._outer[:count])
        slope_XF, grad_XF = self._slope[:count], self._gate_up[:count]
        product(outer_XD, self._down_weight[expert].to(dtype), slope_XF)
        hidden_XF = silu_multiply_gradients(
            gate_up_XF, self._weights_M[pairs], slope_XF, grad_XF, self.weights_M[pairs]
        )
        product(outer_XD.t(), hidden_XF, self.down_EDF[expert])
        product(grad_XF.t(), x_XD, self.gate_up_EFD[expert])
        product(grad_XF, self._gate_up_weight[expert].to(dtype), outer_XD)
        add_rows(self.x_ND, tokens_X, outer_XD)
