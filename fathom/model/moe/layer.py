"""The mixture-of-experts feed-forward layer (DeepSeekMoE §3, V2 eq 20).

X pairs of one expert, Y inputs of a matrix, Z tokens that the experts of this process work on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fathom import kernels
from fathom.model.adapters.low_rank import LowRankUpdate
from fathom.model.ffn import SwiGLU
from fathom.model.moe.context import RoutingContext
from fathom.model.moe.dispatch import ExpertAssignment, LocalDispatcher, TokenDispatcher
from fathom.model.moe.router import Router, Routing
from fathom.spec.moe import MixtureOfExperts


class RoutedExperts(nn.Module):
    """Routed experts, whatever form their weights have: dispatch, grouped products, combine.

    ``dispatcher`` is the identity in one process. Expert parallelism sets another one and leaves each process a part of
    the weights: how many experts a layer holds is read off their shape. ``gate_up_lora`` and ``down_lora`` add to the
    matrices of each expert where the layer is adapted.
    """

    gate_up_lora: LowRankUpdate | None
    down_lora: LowRankUpdate | None

    def __init__(self, dispatcher: TokenDispatcher | None = None) -> None:
        super().__init__()
        self.gate_up_lora = self.down_lora = None
        self.dispatcher: TokenDispatcher = LocalDispatcher() if dispatcher is None else dispatcher

    def forward(self, x_ND: Tensor, assignment: ExpertAssignment) -> Tensor:
        """Sum over each token's experts of weight times expert(token), (N, D)."""
        rows_ZD, held, state = self.dispatcher.dispatch(x_ND, assignment)
        return self.dispatcher.combine(self.grouped(rows_ZD, held), state)

    def grouped(self, x_ZD: Tensor, assignment: ExpertAssignment) -> Tensor:
        """The same sum over the experts held here, whose indices count from 0."""
        raise NotImplementedError

    @property
    def is_adapted(self) -> bool:
        """Whether either matrix has a low-rank update."""
        return self.gate_up_lora is not None or self.down_lora is not None

    def adapted(
        self,
        x_ZD: Tensor,
        assignment: ExpertAssignment,
        num_experts: int,
        gate_up: kernels.ExpertProduct,
        down: kernels.ExpertProduct,
    ) -> Tensor:
        """The sum over the experts held here with their low-rank updates added to the products of frozen weights."""
        return kernels.adapted_swiglu(
            x_ZD,
            assignment.indices_NK,
            assignment.weights_NK,
            assignment.kept_NK,
            num_experts,
            _updated(gate_up, self.gate_up_lora),
            _updated(down, self.down_lora),
        )


def _updated(product: kernels.ExpertProduct, lora: LowRankUpdate | None) -> kernels.ExpertProduct:
    if lora is None:
        return product
    factors = lora.experts()
    return lambda x_XY, expert: product(x_XY, expert) + lora.product(x_XY, *factors[expert], stream=expert)


class Experts(RoutedExperts):
    """Plain weights, stacked: ``gate_up_proj`` (E, 2, F, D), gate first, and ``down_proj`` (E, D, F)."""

    def __init__(self, hidden_size: int, moe: MixtureOfExperts) -> None:
        super().__init__()
        experts, width = moe.n_routed_experts, moe.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2, width, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden_size, width))
        nn.init.normal_(self.gate_up_proj, std=hidden_size**-0.5)
        nn.init.normal_(self.down_proj, std=width**-0.5)

    def grouped(self, x_ZD: Tensor, assignment: ExpertAssignment) -> Tensor:
        """Products over slices of tokens sorted by expert; one token alone reads its K experts only."""
        gate_up_EFD = self.gate_up_proj.flatten(1, 2)
        if self.is_adapted:
            return self.adapted(
                x_ZD,
                assignment,
                len(gate_up_EFD),
                lambda x_XD, expert: kernels.linear(x_XD, gate_up_EFD[expert]),
                lambda x_XF, expert: kernels.linear(x_XF, self.down_proj[expert]),
            )
        return kernels.grouped_swiglu(
            x_ZD,
            assignment.indices_NK,
            assignment.weights_NK,
            gate_up_EFD,
            self.down_proj,
            assignment.kept_NK,
        )


class MoELayer(nn.Module):
    """Routed experts, weighted by the gate, plus shared experts with weight 1 (one ungated SwiGLU).

    The layer never changes its own state: the routing it returns carries what losses, metrics and bias updates need.
    """

    def __init__(self, hidden_size: int, moe: MixtureOfExperts) -> None:
        super().__init__()
        self.gate = Router(hidden_size, moe)
        self.experts = Experts(hidden_size, moe)
        shared = moe.shared_intermediate_size
        self.shared_experts = SwiGLU(hidden_size, shared) if shared else None

    def forward(self, x_BTD: Tensor, context: RoutingContext | None = None) -> tuple[Tensor, Routing]:
        """Return the layer's output, in ``x``'s dtype, and the routing that made it."""
        routing: Routing = self.gate(x_BTD, context)
        kept = routing.kept_BTK
        assignment = ExpertAssignment(
            routing.indices_BTK.flatten(0, 1),
            routing.weights_BTK.flatten(0, 1),
            None if kept is None else kept.flatten(0, 1),
        )
        y_ND: Tensor = self.experts(x_BTD.flatten(0, 1), assignment)
        y_BTD = y_ND.view_as(x_BTD)
        if self.shared_experts is not None:
            y_BTD = y_BTD + self.shared_experts(x_BTD)
        return y_BTD.to(x_BTD.dtype), routing
