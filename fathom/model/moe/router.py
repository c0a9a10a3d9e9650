"""Which experts a token is routed to, and with what weight: score, select and weigh as separate steps.

X groups, Y experts of a group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.errors import SpecError
from fathom.kernels.tensors import autocasts, exact_float32
from fathom.model import counter_rng as draws
from fathom.model.moe.context import RoutingContext
from fathom.model.moe.drop import keep_in_order, keep_within_budget
from fathom.spec.moe import Capacity, GroupLimited, MixtureOfExperts

_JITTER, _NOISE, _SECOND = range(3)  # streams of draws within a layer


@dataclass(frozen=True, slots=True)
class Noise:
    """A noisy router's logits: ``clean_BTE`` without noise, ``noisy_BTE`` with it, and the noise's scale (B, T, E)."""

    clean_BTE: Tensor
    noisy_BTE: Tensor
    scale_BTE: Tensor


@dataclass(frozen=True, slots=True)
class Routing:
    """The output of a router: all that experts, losses, metrics and bias updates need.

    ``scores_BTE`` are the float32 affinities of every expert before any bias, with their gradient. ``indices_BTK``
    are the chosen experts, best first, forced ones as they were given; ``weights_BTK`` (float32) multiply their
    outputs, after normalising and scaling. ``kept_BTK`` is False where a pair does not run, None when all do;
    ``wanted_BTK`` is False where the router itself discarded a chosen expert (GShard's random second), None when it
    discards none: a pair that is wanted and not kept exceeded the capacity. ``logits_BTE`` and ``noise`` are set only
    for the losses that need them.
    """

    scores_BTE: Tensor
    indices_BTK: Tensor
    weights_BTK: Tensor
    kept_BTK: Tensor | None = None
    wanted_BTK: Tensor | None = None
    logits_BTE: Tensor | None = None
    noise: Noise | None = None


class Router(nn.Module):
    """Scores every expert in float32, selects K, and weighs them (V2 §2.2.1-2, V3 §2.1.2).

    Logits and scores are float32 under autocast and with a weight of any dtype, such as FSDP's mixed precision gathers;
    ``model.to(dtype)`` leaves weight and selection bias in float32. The bias moves the selection only, never the
    weights (V3 eq 16); it has no gradient. A hash router has no weight.
    """

    weight: Tensor | None
    noise_weight: Tensor | None
    e_score_correction_bias: Tensor | None

    def __init__(self, hidden_size: int, moe: MixtureOfExperts) -> None:
        super().__init__()
        self.spec = moe.router
        self.num_experts = moe.n_routed_experts
        self.num_experts_per_tok = moe.num_experts_per_tok
        for name, present in (("weight", self.spec.score != "hash"), ("noise_weight", self.spec.score == "noisy")):
            empty_ED = torch.empty(self.num_experts, hidden_size, dtype=torch.float32) if present else None
            self.register_parameter(name, None if empty_ED is None else nn.Parameter(empty_ED))
        bias = torch.zeros(self.num_experts, dtype=torch.float32) if self.spec.selection_bias else None
        self.register_buffer("e_score_correction_bias", bias)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=hidden_size**-0.5)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        """Move between devices, but keep float32: ``model.to(torch.bfloat16)`` must not round the gate."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, x_BTD: Tensor, context: RoutingContext | None = None) -> Routing:
        """Route every token.

        While training, exempt sequences in ``context`` enable dropping beyond a device's budget, and its seeds enable
        noise, jitter and random second experts. Forced experts replace the selection alone: they are weighted by their
        current scores.
        """
        logits_BTE, noise = self._logits(x_BTD, context)
        scores_BTE = logits_BTE
        if self.spec.score != "hash":
            scores_BTE = logits_BTE.sigmoid() if self.spec.score == "sigmoid" else logits_BTE.softmax(-1)
        choice_BTE = self._choice(scores_BTE.detach() if scores_BTE.requires_grad else scores_BTE)
        affinity_BTK, indices_BTK = choice_BTE.topk(self.num_experts_per_tok, dim=-1)
        forced_BTK = context.forced_BTK if context is not None else None
        if forced_BTK is not None:
            indices_BTK = torch.where((forced_BTK >= 0).all(-1, keepdim=True), forced_BTK, indices_BTK)
        if forced_BTK is not None or choice_BTE is not scores_BTE:
            affinity_BTK = scores_BTE.gather(-1, indices_BTK)
        weights_BTK = self._weigh(affinity_BTK)
        kept_BTK, wanted_BTK = self._drop(affinity_BTK, indices_BTK, weights_BTK, context)
        z_logits_BTE = logits_BTE if self.training and self.spec.balance.z_loss else None
        return Routing(scores_BTE, indices_BTK, weights_BTK, kept_BTK, wanted_BTK, z_logits_BTE, noise)

    def _logits(self, x_BTD: Tensor, context: RoutingContext | None) -> tuple[Tensor, Noise | None]:
        if self.weight is None:
            return self._hashed(context), None
        seeds_B = context.seeds_B if self.training and context is not None else None
        if seeds_B is not None and self.spec.jitter:
            factor_BTD = 1.0 + self.spec.jitter * (
                2.0 * draws.uniform(draws.fold_in(seeds_B, _JITTER), *x_BTD.shape[1:]) - 1.0
            )
            x_BTD = x_BTD.float() * factor_BTD
        logits_BTE = self.project(x_BTD, self.weight)
        if self.noise_weight is None or not self.training:
            return logits_BTE, None
        scale_BTE = F.softplus(self.project(x_BTD, self.noise_weight))
        noisy_BTE = logits_BTE
        if seeds_B is not None:
            noisy_BTE = logits_BTE + scale_BTE * draws.normal(draws.fold_in(seeds_B, _NOISE), *logits_BTE.shape[1:])
        return noisy_BTE, Noise(logits_BTE, noisy_BTE, scale_BTE)

    def project(self, x_BTD: Tensor, weight_ED: Tensor) -> Tensor:
        """Logits from the input: a float32 product under autocast and whatever the weight's dtype is.

        It is exact where TF32 is allowed too, except under torch.compile.
        """
        device = x_BTD.device.type
        if autocasts(device):
            with torch.autocast(device, enabled=False):
                return self.project(x_BTD, weight_ED)
        if device == "cuda" and not torch.compiler.is_compiling():
            with exact_float32():
                return F.linear(x_BTD.float(), weight_ED.float())
        return F.linear(x_BTD.float(), weight_ED.float())

    def _hashed(self, context: RoutingContext | None) -> Tensor:
        """One-hot scores of the expert that the hash of each token id selects."""
        if context is None or context.tokens_BT is None:
            raise SpecError("router.score", "hash routing needs token ids", "pass RoutingContext(tokens_BT=...)")
        expert_BT = draws.splitmix64(context.tokens_BT) % self.num_experts
        return F.one_hot(expert_BT, self.num_experts).to(torch.float32)

    def _drop(
        self, affinity_BTK: Tensor, indices_BTK: Tensor, weights_BTK: Tensor, context: RoutingContext | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Which pairs are kept, and which the router wants: None for all."""
        select, balance = self.spec.select, self.spec.balance
        if isinstance(select, Capacity):
            wanted_BTK = self._second_experts(weights_BTK, context) if select.second == "random" else None
            groups_XTK = indices_BTK if select.group == "sequence" else indices_BTK.flatten(0, 1).unsqueeze(0)
            slots = select.slots(groups_XTK.shape[1], self.num_experts, training=self.training)
            if slots is None:
                return wanted_BTK, wanted_BTK
            kept_BTK = keep_in_order(groups_XTK, slots=slots, num_experts=self.num_experts).reshape_as(indices_BTK)
            return (kept_BTK if wanted_BTK is None else kept_BTK & wanted_BTK), wanted_BTK
        exempt_B = context.exempt_B if context is not None else None
        if not self.training or exempt_B is None or balance.capacity_factor is None:
            return None, None
        kept_BTK = keep_within_budget(
            affinity_BTK.detach(),
            indices_BTK,
            exempt_B,
            experts_per_device=self.num_experts // balance.devices,
            devices=balance.devices,
            capacity_factor=balance.capacity_factor,
        )
        return kept_BTK, None

    def _second_experts(self, weights_BTK: Tensor, context: RoutingContext | None) -> Tensor | None:
        """True for every first expert, and for a second one with probability min(1, 2 g2) (GShard Alg. 1)."""
        if not self.training or context is None or context.seeds_B is None:
            return None
        drawn_BT = draws.uniform(draws.fold_in(context.seeds_B, _SECOND), weights_BTK.shape[1])
        second_BT = drawn_BT < 2.0 * weights_BTK[..., 1].detach() / self.spec.scale
        return torch.stack((torch.ones_like(second_BT), second_BT), dim=-1)

    def _choice(self, scores_BTE: Tensor) -> Tensor:
        """Scores that selection ranks experts by: with any bias, minus infinity outside the chosen groups."""
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
    choice_BTXY = choice_BTE.view(*choice_BTE.shape[:-1], select.n_group, -1)
    if select.group_score == "max":
        rank_BTX = choice_BTXY.amax(-1)
    else:
        rank_BTX = choice_BTXY.topk(2, dim=-1).values.sum(-1)
    chosen = rank_BTX.topk(select.topk_group, dim=-1).indices
    excluded_BTX = torch.ones_like(rank_BTX, dtype=torch.bool).scatter_(-1, chosen, False)
    return choice_BTXY.masked_fill(excluded_BTX.unsqueeze(-1), float("-inf")).flatten(-2)
