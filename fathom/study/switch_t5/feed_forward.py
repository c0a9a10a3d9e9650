"""ReLU feed-forward layers, dense and as a mixture of experts under a capacity.

B batch, T tokens, N = B x T, D d_model, F d_ff, E experts, K experts per token, C pairs of one expert.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from fathom.kernels.experts import dispatch_by_expert
from fathom.model.moe import Router, Routing, RoutingContext
from fathom.model.moe.drop import keep_in_order
from fathom.spec import MixtureOfExperts
from fathom.study.switch_t5.spec import EncoderDecoderSpec


class DenseMLP(nn.Module):
    """wo(relu(wi(x))), without biases."""

    def __init__(self, spec: EncoderDecoderSpec) -> None:
        super().__init__()
        self.wi = nn.Linear(spec.d_model, spec.d_ff, bias=False)
        self.wo = nn.Linear(spec.d_ff, spec.d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        return self.wo(self.wi(x_BTD).relu())  # type: ignore[no-any-return]


class Experts(nn.Module):
    """The experts' weights, stacked: ``wi`` (E, F, D) and ``wo`` (E, D, F)."""

    def __init__(self, width: int, moe: MixtureOfExperts) -> None:
        super().__init__()
        experts, inner = moe.n_routed_experts, moe.moe_intermediate_size
        self.wi = nn.Parameter(torch.empty(experts, inner, width))
        self.wo = nn.Parameter(torch.empty(experts, width, inner))

    def forward(self, x_ND: Tensor, indices_NK: Tensor, weights_NK: Tensor, kept_NK: Tensor | None) -> Tensor:
        """Sum over each token's kept experts of weight times expert(token); zero for a token that found no place."""
        plan = dispatch_by_expert(indices_NK, kept_NK, self.wi.shape[0])
        if not plan.order_M.numel():
            return torch.zeros_like(x_ND)
        rows_PD = x_ND[plan.tokens_M]
        outputs = [(rows_PD[pairs] @ self.wi[e].T).relu() @ self.wo[e].T for e, pairs in plan.slices()]
        weights_P1 = weights_NK.reshape(-1)[plan.order_M, None].to(x_ND.dtype)
        return torch.zeros_like(x_ND).index_add(0, plan.tokens_M, torch.cat(outputs) * weights_P1)


class SparseMLP(nn.Module):
    """A router in float32 and its experts; a token without a place passes by the residual stream alone.

    With ``expert_capacity`` each sequence has that many places at every expert, served in the order of the text; else
    the router's own select decides what is kept.
    """

    def __init__(self, spec: EncoderDecoderSpec, moe: MixtureOfExperts) -> None:
        super().__init__()
        self.router = Router(spec.d_model, moe)
        self.experts = Experts(spec.d_model, moe)
        self.expert_capacity = spec.expert_capacity

    def forward(self, x_BTD: Tensor, context: RoutingContext | None = None) -> tuple[Tensor, Routing]:
        """Return the layer's output and the routing that made it."""
        routing: Routing = self.router(x_BTD, context)
        if self.expert_capacity is not None:
            experts = routing.scores_BTE.shape[-1]
            kept_BTK = keep_in_order(routing.indices_BTK, slots=self.expert_capacity, num_experts=experts)
            routing = replace(routing, kept_BTK=kept_BTK)
        kept = routing.kept_BTK
        y_ND = self.experts(
            x_BTD.flatten(0, 1),
            routing.indices_BTK.flatten(0, 1),
            routing.weights_BTK.flatten(0, 1),
            None if kept is None else kept.flatten(0, 1),
        )
        return y_ND.view_as(x_BTD), routing
