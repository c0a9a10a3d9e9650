"""The mixture-of-experts feed-forward layer (DeepSeekMoE §3, V2 eq 20)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fathom.kernels import grouped_swiglu
from fathom.model.ffn import SwiGLU
from fathom.model.moe.context import RoutingContext
from fathom.model.moe.router import Router, Routing
from fathom.spec.moe import MixtureOfExperts


class Experts(nn.Module):
    """The routed experts' weights, stacked: ``gate_up_proj`` (E, 2, F, D), gate first, and ``down_proj`` (E, D, F)."""

    def __init__(self, hidden_size: int, moe: MixtureOfExperts) -> None:
        super().__init__()
        experts, width = moe.n_routed_experts, moe.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2, width, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden_size, width))
        nn.init.normal_(self.gate_up_proj, std=hidden_size**-0.5)
        nn.init.normal_(self.down_proj, std=width**-0.5)

    def forward(self, x_ND: Tensor, indices_NK: Tensor, weights_NK: Tensor, kept_NK: Tensor | None) -> Tensor:
        """Sum over each token's experts of weight times expert(token), (N, D); pairs not kept contribute nothing."""
        return grouped_swiglu(x_ND, indices_NK, weights_NK, self.gate_up_proj.flatten(1, 2), self.down_proj, kept_NK)


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
        y_ND: Tensor = self.experts(
            x_BTD.flatten(0, 1),
            routing.indices_BTK.flatten(0, 1),
            routing.weights_BTK.flatten(0, 1),
            None if kept is None else kept.flatten(0, 1),
        )
        y_BTD = y_ND.view_as(x_BTD)
        if self.shared_experts is not None:
            y_BTD = y_BTD + self.shared_experts(x_BTD)
        return y_BTD.to(x_BTD.dtype), routing
