"""Mixture of experts as data: a router is score x select x weigh x balance, four independent choices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fathom.errors import SpecError
from fathom.spec import check

RouterScore = Literal["softmax", "sigmoid", "noisy", "hash"]
GroupScore = Literal["max", "top2_sum"]
BalanceScope = Literal["sequence", "batch"]
Counted = Literal["chosen", "first"]
SecondExpert = Literal["always", "random"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Select the k best experts, each with capacity for a fixed share of a group's tokens (GShard Alg. 1, Switch §2.2).

    Of a group of S tokens an expert takes the first ``capacity_factor * S / n_routed_experts`` (rounded down, at
    least 1) in the order of the text, all first choices before all second ones; the rest pass by the residual stream
    alone. GShard's 2N / GE is a factor of 2. A group is a sequence, or the whole micro-batch. ``eval_capacity_factor``
    holds outside training; None drops nothing there. ``second`` "random" uses the second expert with probability
    min(1, 2 g2) while training, g2 being its normalised weight; as printed, it holds its place even when unused.
    """

    kind: ClassVar[str] = "capacity"
    capacity_factor: float
    eval_capacity_factor: float | None = None
    group: BalanceScope = "sequence"
    second: SecondExpert = "always"

    def __post_init__(self) -> None:
        check.positive("capacity_factor", self.capacity_factor)
        if self.eval_capacity_factor is not None:
            check.positive("eval_capacity_factor", self.eval_capacity_factor)
        check.one_of("group", self.group, ("sequence", "batch"))
        check.one_of("second", self.second, ("always", "random"))

    def slots(self, tokens: int, experts: int, *, training: bool) -> int | None:
        """Places an expert has for a group of so many tokens; None where there is no limit."""
        factor = self.capacity_factor if training else self.eval_capacity_factor
        return None if factor is None else max(1, int(factor * tokens / experts))


Select = TopK | GroupLimited | Capacity


LOSSES = (
    *("expert_loss", "device_loss", "communication_loss", "sequence_loss"),
    *("importance_loss", "load_loss", "z_loss"),
)
"""The fields of ``BalanceSpec`` that weigh a loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceSpec:
    """What keeps experts evenly used while training; all zero means nothing does.

    Losses are those of V2 §2.2.3 (expert, device, communication) and V3 eq 17 (sequence). ``devices`` is V2's D,
    the number of groups of consecutive experts. ``devices_per_token`` is V2's M. ``bias_update_rate`` is V3's gamma:
    after each step the selection bias moves by that much towards the mean load. ``capacity_factor`` drops the tokens
    of lowest affinity on each device beyond its even share (V2 §2.2.4), except in ``drop_exempt_fraction`` of the
    sequences. ``scope`` says over what an expert loss's frequencies are counted, ``counted`` whether all chosen
    experts count or only each token's first. Switch's alpha is ``expert_loss`` over the batch; GShard's k l_aux is
    ``expert_loss = k / n_routed_experts^2``, counting first choices. ``importance_loss`` and ``load_loss`` are
    Shazeer's two (§4), ``z_loss`` weighs the squared log-partition of the logits (ST-MoE eq 5).
    """

    expert_loss: float = 0.0
    device_loss: float = 0.0
    communication_loss: float = 0.0
    sequence_loss: float = 0.0
    importance_loss: float = 0.0
    load_loss: float = 0.0
    z_loss: float = 0.0
    scope: BalanceScope = "sequence"
    counted: Counted = "chosen"
    devices: int = 1
    devices_per_token: int = 1
    bias_update_rate: float = 0.0
    capacity_factor: float | None = None
    drop_exempt_fraction: float = 0.1

    def __post_init__(self) -> None:
        for name in (*LOSSES, "bias_update_rate"):
            check.not_negative(name, getattr(self, name))
        check.one_of("counted", self.counted, ("chosen", "first"))
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
class RouterSpec:
    """How tokens meet experts. Scores are always computed in float32.

    ``score`` "noisy" is a softmax over logits to which training adds N(0, 1) softplus(x W_noise) (Shazeer §2.1);
    "hash" fixes each token id's expert by a hash and learns nothing. ``jitter`` multiplies the router's input by
    uniform numbers of 1 - jitter to 1 + jitter while training (Switch §2.4). ``selection_bias`` adds one number per
    expert to the scores for selection only (V3). ``normalize`` divides the selected weights by their sum; ``scale``
    multiplies them (``routed_scaling_factor``).
    """

    score: RouterScore = "softmax"
    select: Select = field(default_factory=TopK)
    selection_bias: bool = False
    normalize: bool = False
    scale: float = 1.0
    jitter: float = 0.0
    balance: BalanceSpec = field(default_factory=BalanceSpec)

    def __post_init__(self) -> None:
        check.one_of("score", self.score, ("softmax", "sigmoid", "noisy", "hash"))
        check.positive("scale", self.scale)
        check.fraction("jitter", self.jitter)
        if self.balance.bias_update_rate and not self.selection_bias:
            raise SpecError("balance.bias_update_rate", "there is no selection bias to update", "set selection_bias")
        if self.score == "noisy":
            self._check_noisy()
        elif self.balance.load_loss:
            raise SpecError("balance.load_loss", f"{self.score} scores have no noise to smooth it", 'use score "noisy"')
        if self.score == "hash":
            self._check_hash()
        if self.balance.z_loss and self.score == "sigmoid":
            raise SpecError("balance.z_loss", "sigmoid scores have no partition function", "drop it or use softmax")
        if isinstance(self.select, Capacity):
            self._check_capacity(self.select)

    @property
    def draws(self) -> bool:
        """Whether training draws random numbers."""
        random_second = isinstance(self.select, Capacity) and self.select.second == "random"
        return self.score == "noisy" or self.jitter > 0 or random_second

    def _check_noisy(self) -> None:
        if not isinstance(self.select, TopK):
            raise SpecError("select", f"noisy scores with {self.select.kind} selection are not built", "use top_k")
        if not self.normalize or self.selection_bias:
            problem = "noisy gates are a softmax over the chosen experts, without a selection bias"
            raise SpecError("score", problem, "set normalize and leave selection_bias out")

    def _check_hash(self) -> None:
        learned = [name for name in LOSSES if getattr(self.balance, name)]
        if learned:
            raise SpecError(f"balance.{learned[0]}", "a hash has no scores to learn from", "drop it")
        if self.jitter or self.normalize or self.selection_bias or isinstance(self.select, GroupLimited):
            problem = "a hash knows no jitter, normalisation, selection bias or groups"
            raise SpecError("score", problem, "leave them out or use softmax")

    def _check_capacity(self, select: Capacity) -> None:
        if self.balance.capacity_factor is not None:
            problem = "tokens would be dropped twice, by the device's budget and by the expert's"
            raise SpecError("balance.capacity_factor", problem, "keep one capacity_factor")
        if select.second == "random" and not self.normalize:
            raise SpecError("select.second", "its probability is the normalised weight's", "set normalize")


MOST_EXPERTS = 2**16
WIDEST_EXPERT = 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureOfExperts:
    """Routed and shared SwiGLU experts (DeepSeekMoE §3).

    Shared experts are one ungated MLP of width ``n_shared_experts * moe_intermediate_size``, added with weight 1.
    """

    n_routed_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    n_shared_experts: int = 0
    router: RouterSpec = field(default_factory=RouterSpec)

    def __post_init__(self) -> None:
        check.count("n_routed_experts", self.n_routed_experts, MOST_EXPERTS)
        check.positive("num_experts_per_tok", self.num_experts_per_tok)
        check.count("moe_intermediate_size", self.moe_intermediate_size, WIDEST_EXPERT)
        check.count("n_shared_experts", self.n_shared_experts, MOST_EXPERTS, least=0)
        select, available = self.router.select, self.n_routed_experts
        if isinstance(select, GroupLimited):
            check.multiple_of(
                "n_routed_experts", self.n_routed_experts, select.n_group, why="router.select.n_group equal groups"
            )
            group_size = self.n_routed_experts // select.n_group
            if select.group_score == "top2_sum" and group_size < 2:
                raise SpecError("router.select.n_group", "top2_sum needs two experts in a group", "use fewer groups")
            available = group_size * select.topk_group
        self._check_experts_per_token()
        if self.num_experts_per_tok > available:
            raise SpecError(
                "num_experts_per_tok",
                f"{self.num_experts_per_tok} experts per token but only {available} can be selected",
                "lower num_experts_per_tok or raise n_routed_experts or topk_group",
            )
        check.multiple_of(
            "n_routed_experts", self.n_routed_experts, self.router.balance.devices, why="router.balance.devices"
        )

    def _check_experts_per_token(self) -> None:
        router, chosen = self.router, self.num_experts_per_tok
        if router.score == "hash" and chosen != 1:
            raise SpecError("num_experts_per_tok", f"a hash gives 1 expert, not {chosen}", "set 1 or use softmax")
        if router.score == "noisy" and not 1 < chosen < self.n_routed_experts:
            problem = f"noisy gates need 2 or more of the experts, but not all, got {chosen}"
            raise SpecError("num_experts_per_tok", problem, "choose between 2 and n_routed_experts - 1")
        if isinstance(router.select, Capacity):
            if router.select.second == "random" and chosen != 2:
                raise SpecError("num_experts_per_tok", f"a random second expert with {chosen} in all", "set 2")
            if router.normalize and chosen == 1:
                problem = "normalising one weight makes it 1, and the gate would not learn"
                raise SpecError("router.normalize", problem, "leave it out, as Switch does")

    @property
    def shared_intermediate_size(self) -> int:
        """Width of the one MLP that stands for all shared experts."""
        return self.n_shared_experts * self.moe_intermediate_size
