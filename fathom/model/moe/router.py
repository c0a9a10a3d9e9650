"""Which experts a token meets, and with what weight: score, select, weigh, each its own step.

Dimensions: B batch, T tokens, D hidden size, E experts, K experts per token, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.model.moe.drop import keep_within_budget
from fathom.spec.moe import GroupLimited, MixtureOfExperts


@dataclass(frozen=True, slots=True)
class Routing:
    """What a router decided, and all that losses, metrics and bias updates need.

    ``scores_BTE`` are the float32 affinities of every expert before any bias, with their gradient. ``indices_BTK``
    are the chosen experts, best first; ``weights_BTK`` (float32) multiply their outputs, after normalising and
    scaling. ``kept_BTK`` is False where a pair was dropped for lack of capacity, None when nothing may be dropped.
    """

    scores_BTE: Tensor
    indices_BTK: Tensor
    weights_BTK: Tensor
    kept_BTK: Tensor | None = None


class Router(nn.Module):
    """Scores every expert in float32, selects K, and weighs them (V2 §2.2.1-2, V3 §2.1.2).

    The weight and the selection bias stay float32 whatever dtype or autocast the model is put in. The bias moves
    the selection only, never the weights (V3 eq 16); it has no gradient.
    """

    weight: Tensor
    e_score_correction_bias: Tensor | None

    def __init__(self, hidden_size: int, moe: MixtureOfExperts) -> None:
        super().__init__()
        self.spec = moe.router
        self.num_experts = moe.n_routed_experts
        self.num_experts_per_tok = moe.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(self.num_experts, hidden_size, dtype=torch.float32))
        bias = torch.zeros(self.num_experts, dtype=torch.float32) if self.spec.selection_bias else None
        self.register_buffer("e_score_correction_bias", bias)
        nn.init.normal_(self.weight, std=hidden_size**-0.5)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        """Move between devices, but keep float32: ``model.to(torch.bfloat16)`` must not round the gate."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, x_BTD: Tensor, drop_exempt_B: Tensor | None = None) -> Routing:
        """Route every token.

        While training, with ``capacity_factor`` set and ``drop_exempt_B`` (bool) given, pairs beyond a device's
        budget are dropped except in exempt sequences; otherwise nothing is.
        """
        scores_BTE = self._score(x_BTD)
        choice_BTE = self._choice(scores_BTE.detach() if scores_BTE.requires_grad else scores_BTE)
        affinity_BTK, indices_BTK = choice_BTE.topk(self.num_experts_per_tok, dim=-1)
        if choice_BTE is not scores_BTE:
            affinity_BTK = scores_BTE.gather(-1, indices_BTK)
        balance, kept_BTK = self.spec.balance, None
        if self.training and drop_exempt_B is not None and balance.capacity_factor is not None:
            kept_BTK = keep_within_budget(
                affinity_BTK.detach(),
                indices_BTK,
                drop_exempt_B,
                experts_per_device=self.num_experts // balance.devices,
                devices=balance.devices,
                capacity_factor=balance.capacity_factor,
            )
        return Routing(scores_BTE, indices_BTK, self._weigh(affinity_BTK), kept_BTK)

    def _score(self, x_BTD: Tensor) -> Tensor:
        device = x_BTD.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                logits_BTE = F.linear(x_BTD.float(), self.weight)
        else:
            logits_BTE = F.linear(x_BTD.float(), self.weight)
        return logits_BTE.softmax(-1) if self.spec.score == "softmax" else logits_BTE.sigmoid()

    def _choice(self, scores_BTE: Tensor) -> Tensor:
        """What the selection ranks experts by: scores, with any bias, minus infinity outside the chosen groups."""
        choice_BTE = scores_BTE
        if self.e_score_correction_bias is not None:
            choice_BTE = choice_BTE + self.e_score_correction_bias
        if isinstance(self.spec.select, GroupLimited):
            choice_BTE = limit_groups(choice_BTE, self.spec.select)
        return choice_BTE

    def _weigh(self, affinity_BTK: Tensor) -> Tensor:
        weights_BTK = affinity_BTK
        if self.spec.normalize:
            weights_BTK = weights_BTK / (weights_BTK.sum(-1, keepdim=True) + 1e-20)
        return weights_BTK if self.spec.scale == 1.0 else weights_BTK * self.spec.scale


def limit_groups(choice_BTE: Tensor, select: GroupLimited) -> Tensor:
    """Replace the scores of experts outside each token's best groups by minus infinity.

    Zero would not do: a score with its bias may be negative, and an excluded expert would win.
    """
    choice_BTGS = choice_BTE.view(*choice_BTE.shape[:-1], select.n_group, -1)
    if select.group_score == "max":
        rank_BTG = choice_BTGS.amax(-1)
    else:
        rank_BTG = choice_BTGS.topk(2, dim=-1).values.sum(-1)
    chosen = rank_BTG.topk(select.topk_group, dim=-1).indices
    excluded_BTG = torch.ones_like(rank_BTG, dtype=torch.bool).scatter_(-1, chosen, False)
    return choice_BTGS.masked_fill(excluded_BTG.unsqueeze(-1), float("-inf")).flatten(-2)
