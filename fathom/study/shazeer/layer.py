"""The sparsely-gated layer: a flat or two-level gate over ReLU experts.

Dimensions: N tokens, D width, F expert width, E experts, K experts per token, A groups, B experts of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.errors import SpecError
from fathom.kernels.experts import dispatch_by_expert
from fathom.study.shazeer.gating import Gates, hierarchical_gating, noisy_top_k


@dataclass(frozen=True, slots=True)
class Layout:
    """``experts`` of which a token takes ``k``; with ``groups`` it takes ``k`` of them and ``k`` experts in each."""

    experts: int
    k: int
    groups: int | None = None

    def __post_init__(self) -> None:
        if self.groups is not None and self.experts % self.groups:
            raise SpecError("groups", f"{self.experts} experts do not divide into {self.groups}", "use a divisor")
        if not 1 <= self.k <= min(self.groups or self.experts, self.experts // (self.groups or 1)):
            raise SpecError("k", f"{self.k} cannot be taken of {self.experts} experts", "use less")

    @property
    def per_token(self) -> int:
        """Experts a token takes."""
        return self.k if self.groups is None else self.k**2

    @property
    def name(self) -> str:
        """As the paper names models: MoE-32, MoE-256-h."""
        return f"MoE-{self.experts}{'' if self.groups is None else '-h'}"


class Gate(nn.Module):
    """W_g and W_noise of every level, all zero at first: no signal, some noise, an even load (App. A).

    In two levels every group's own gate is evaluated for every token; only the chosen ones count.
    """

    def __init__(self, width: int, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.weight = nn.Parameter(torch.zeros(2, layout.experts, width))
        groups = layout.groups
        self.primary_weight = None if groups is None else nn.Parameter(torch.zeros(2, groups, width))

    def forward(self, x_ND: Tensor, generator: torch.Generator | None) -> Gates:
        """Gate every token, with noise drawn from ``generator``, or without."""
        logits = self._logits(x_ND, self.weight, generator)
        if self.primary_weight is None or self.layout.groups is None:
            return noisy_top_k(*logits, self.layout.k)
        shape = (x_ND.shape[0], self.layout.groups, -1)
        clean, scale, noise = logits
        secondary = clean.view(shape), scale.view(shape), None if noise is None else noise.view(shape)
        return hierarchical_gating(
            self._logits(x_ND, self.primary_weight, generator), secondary, (self.layout.k, self.layout.k)
        )

    def _logits(
        self, x_ND: Tensor, weight_2ED: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        clean_NE, raw_NE = F.linear(x_ND, weight_2ED.flatten(0, 1)).chunk(2, dim=-1)
        noise_NE = None if generator is None else torch.randn(clean_NE.shape, generator=generator)
        return clean_NE, F.softplus(raw_NE), noise_NE


class SparseMoE(nn.Module):
    """The gate and its experts, each relu(x up) down without biases."""

    def __init__(self, width: int, hidden: int, layout: Layout) -> None:
        super().__init__()
        self.gate = Gate(width, layout)
        self.up = nn.Parameter(torch.randn(layout.experts, width, hidden) * (2.0 / width) ** 0.5)
        self.down = nn.Parameter(torch.randn(layout.experts, hidden, width) * (1.0 / hidden) ** 0.5)

    def forward(self, x_ND: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Gates]:
        """Return the weighted sum of the chosen experts' answers, and the gates."""
        gates: Gates = self.gate(x_ND, generator)
        return grouped_relu(x_ND, gates.indices_NK, gates.weights_NK, self.up, self.down), gates


def grouped_relu(x_ND: Tensor, indices_NK: Tensor, weights_NK: Tensor, up_EDF: Tensor, down_EFD: Tensor) -> Tensor:
    """Sum over each token's experts of weight times relu(x up) down: tokens are sorted by expert once.

    The kernels' grouped products are for SwiGLU; these experts have one product less and are small, so autograd over
    one product an expert serves.
    """
    plan = dispatch_by_expert(indices_NK, None, up_EDF.shape[0])
    rows = x_ND[plan.tokens_M].split_with_sizes(plan.counts)
    hidden_PF = torch.cat([x_CD @ up_DF for x_CD, up_DF in zip(rows, up_EDF.unbind(0), strict=True)]).relu()
    parts = zip(hidden_PF.split_with_sizes(plan.counts), down_EFD.unbind(0), strict=True)
    y_PD = torch.cat([h_CF @ down_FD for h_CF, down_FD in parts])
    weighted_PD = y_PD * weights_NK.flatten()[plan.order_M].unsqueeze(1)
    return torch.zeros_like(x_ND).index_add(0, plan.tokens_M, weighted_PD)
