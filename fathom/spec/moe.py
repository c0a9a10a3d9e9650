"""Mixture of experts as data: a router is score x select x weigh x balance, four independent choices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fathom.errors import SpecError
from fathom.spec import check

Score = Literal["softmax", "sigmoid"]
GroupScore = Literal["max", "top2_sum"]
BalanceScope = Literal["sequence", "batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """Select the k best experts of all."""

    kind: ClassVar[str] = "top_k"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLimited:
    """Select the best ``topk_group`` of ``n_group`` expert groups, then the k best experts within them.

    A group is a device (V2 §2.2.2, ``group_score`` "max": its best expert) or a node (V3 §2.1.2, "top2_sum": the
    sum of its two best biased scores). Experts outside the chosen groups are masked with minus infinity.
    """

    kind: ClassVar[str] = "group_limited"
    n_group: int
    topk_group: int
    group_score: GroupScore = "max"

    def __post_init__(self) -> None:
        check.positive("n_group", self.n_group)
        check.positive("topk_group", self.topk_group)
        check.one_of("group_score", self.group_score, ("max", "top2_sum"))
        if self.topk_group > self.n_group:
            raise SpecError("topk_group", f"{self.topk_group} groups of {self.n_group}", "choose at most n_group")


Select = TopK | GroupLimited


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What keeps experts evenly used while training; all zero means nothing does.

    Losses are those of V2 §2.2.3 (expert, device, communication) and V3 eq 17 (sequence). ``devices`` is V2's D,
    the number of groups of consecutive experts. ``devices_per_token`` is V2's M. ``bias_update_rate`` is V3's gamma:
    after each step the selection bias moves by that much towards the mean load. ``capacity_factor`` drops the tokens
    of lowest affinity on each device beyond its even share (V2 §2.2.4), except in ``drop_exempt_fraction`` of the
    sequences. ``scope`` says over what an expert loss's frequencies are counted.
    """

    expert_loss: float = 0.0
    device_loss: float = 0.0
    communication_loss: float = 0.0
    sequence_loss: float = 0.0
    scope: BalanceScope = "sequence"
    devices: int = 1
    devices_per_token: int = 1
    bias_update_rate: float = 0.0
    capacity_factor: float | None = None
    drop_exempt_fraction: float = 0.1

    def __post_init__(self) -> None:
        for name in ("expert_loss", "device_loss", "communication_loss", "sequence_loss", "bias_update_rate"):
            check.not_negative(name, getattr(self, name))
        check.positive("devices", self.devices)
        check.positive("devices_per_token", self.devices_per_token)
        check.one_of("scope", self.scope, ("sequence", "batch"))
        check.fraction("drop_exempt_fraction", self.drop_exempt_fraction)
        if self.capacity_factor is not None:
            check.positive("capacity_factor", self.capacity_factor)
        if self.devices_per_token > self.devices:
            raise SpecError(
                "devices_per_token", f"{self.devices_per_token} of {self.devices} devices", "choose at most devices"
            )
        if self.devices == 1 and (self.device_loss or self.communication_loss):
            raise SpecError("devices", "device and communication losses need more than one device", "set devices")


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """How tokens meet experts. Scores are always computed in float32.

    ``selection_bias`` adds one number per expert to the scores for selection only (V3). ``normalize`` divides the
    selected weights by their sum; ``scale`` multiplies them (``routed_scaling_factor``).
    """

    score: Score = "softmax"
    select: Select = field(default_factory=TopK)
    selection_bias: bool = False
    normalize: bool = False
    scale: float = 1.0
    balance: Balance = field(default_factory=Balance)

    def __post_init__(self) -> None:
        check.one_of("score", self.score, ("softmax", "sigmoid"))
        check.positive("scale", self.scale)
        if self.balance.bias_update_rate and not self.selection_bias:
            raise SpecError("balance.bias_update_rate", "there is no selection bias to update", "set selection_bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureOfExperts:
    """Routed and shared SwiGLU experts (DeepSeekMoE §3).

    Shared experts are one ungated MLP of width ``n_shared_experts * moe_intermediate_size``, added with weight 1.
    """

    n_routed_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    n_shared_experts: int = 0
    router: Router = field(default_factory=Router)

    def __post_init__(self) -> None:
        check.positive("n_routed_experts", self.n_routed_experts)
        check.positive("num_experts_per_tok", self.num_experts_per_tok)
        check.positive("moe_intermediate_size", self.moe_intermediate_size)
        check.not_negative("n_shared_experts", self.n_shared_experts)
        select, available = self.router.select, self.n_routed_experts
        if isinstance(select, GroupLimited):
            check.multiple_of(
                "n_routed_experts", self.n_routed_experts, select.n_group, why="router.select.n_group equal groups"
            )
            group_size = self.n_routed_experts // select.n_group
            if select.group_score == "top2_sum" and group_size < 2:
                raise SpecError("router.select.n_group", "top2_sum needs two experts in a group", "use fewer groups")
            available = group_size * select.topk_group
        if self.num_experts_per_tok > available:
            raise SpecError(
                "num_experts_per_tok",
                f"{self.num_experts_per_tok} experts per token but only {available} can be selected",
                "lower num_experts_per_tok or raise n_routed_experts or topk_group",
            )
        check.multiple_of(
            "n_routed_experts", self.n_routed_experts, self.router.balance.devices, why="router.balance.devices"
        )

    @property
    def shared_intermediate_size(self) -> int:
        """Width of the one MLP that stands for all shared experts."""
        return self.n_shared_experts * self.moe_intermediate_size
