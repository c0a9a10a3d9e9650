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

    A group is a device (V2 §2.2.2) or a node (V3 §2.1.2). Experts outside the chosen groups are masked with minus
    infinity.
    """

    kind: ClassVar[str] = "group_limited"
    n_group: int
    """Groups of consecutive experts, equally large: devices in V2, nodes in V3.

    Unit: groups
    Paper: 8 (V2 §3.1.2, V3 §4.2)
    Example: 8
    """
    topk_group: int
    """Groups that a token's experts may lie in.

    Unit: groups
    Paper: 3 (V2 §3.1.2), 4 (V3 §4.2)
    Example: 3
    """
    group_score: GroupScore = "max"
    """How good a group is: max is its best expert, top2_sum the sum of its two best biased scores.

    Paper: max (V2 §2.2.2), top2_sum (V3 §2.1.2)
    """

    def __post_init__(self) -> None:
        check.positive("n_group", self.n_group)
        check.positive("topk_group", self.topk_group)
        check.one_of("group_score", self.group_score, ("max", "top2_sum"))
        if self.topk_group > self.n_group:
            raise SpecError("topk_group", f"{self.topk_group} groups of {self.n_group}", "choose at most n_group")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Select the k best experts, each with a capacity for tokens of a group (GShard Alg. 1, Switch §2.2).

    Of a group of S tokens an expert takes the first ``capacity_factor * S / n_routed_experts`` (rounded down, at least
    1) in the order of the text, all first choices before all second ones; the rest pass by the residual stream alone.
    """

    kind: ClassVar[str] = "capacity"
    capacity_factor: float
    """Places of an expert as a multiple of its even share of a group's tokens; GShard's 2N / GE is 2.

    Paper: 1.0 to 2.0 (Switch Table 1)
    Example: 1.25
    """
    eval_capacity_factor: float | None = None
    """The same outside training; left out, nothing is dropped there.

    Example: 2.0
    """
    group: BalanceScope = "sequence"
    """Over what places are counted: each sequence, or the whole micro-batch."""
    second: SecondExpert = "always"
    """always uses the second expert; random does with probability min(1, 2 g2) while training, g2 being its
    normalised weight, and it holds its place even when unused.

    Paper: random (GShard Alg. 1)
    """

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
    """What keeps experts evenly used while training; all zero means nothing does."""

    expert_loss: float = 0.0
    """Weight of the expert-level balance loss (V2 eq 23). Switch's alpha is this with scope batch; GShard's k l_aux
    is k / n_routed_experts^2, counting first choices.

    Paper: 0.003 (V2 §3.1.2), 0.001 (V2-Lite), 0.01 (Switch §2.2)
    """
    device_loss: float = 0.0
    """Weight of the device-level balance loss (V2 eq 26).

    Paper: 0.05 (V2 §3.1.2)
    """
    communication_loss: float = 0.0
    """Weight of the communication balance loss (V2 eq 29).

    Paper: 0.02 (V2 §3.1.2)
    """
    sequence_loss: float = 0.0
    """Weight of the sequence-wise balance loss beside a selection bias (V3 eq 17).

    Paper: 1e-4 (V3 §4.2)
    """
    importance_loss: float = 0.0
    """Weight of the squared variation of the experts' summed gates (Shazeer §4).

    Paper: 0.1 (Shazeer §4)
    """
    load_loss: float = 0.0
    """Weight of the squared variation of the experts' expected loads; needs noisy scores (Shazeer §4).

    Paper: 0.1 (Shazeer §4)
    """
    z_loss: float = 0.0
    """Weight of the squared log-partition of the router's logits (ST-MoE eq 5)."""
    scope: BalanceScope = "sequence"
    """Over what an expert loss counts how often experts are chosen: each sequence, or the whole micro-batch.

    Paper: sequence (V2 §2.2.3)
    """
    counted: Counted = "chosen"
    """Whether all chosen experts count in the frequencies, or only each token's first.

    Paper: chosen (V2 §2.2.3), first (GShard Alg. 1)
    """
    devices: int = 1
    """V2's D: groups of consecutive experts that device and communication losses and token dropping see.

    Unit: groups
    Paper: 8 (V2 §3.1.2)
    """
    devices_per_token: int = 1
    """V2's M: devices that a token is sent to at most.

    Unit: groups
    Paper: 3 (V2 §3.1.2)
    """
    bias_update_rate: float = 0.0
    """V3's gamma: after each step the selection bias moves by that much towards the mean load.

    Paper: 0.001 (V3 §4.2)
    """
    capacity_factor: float | None = None
    """Tokens of lowest affinity on each device beyond this multiple of its even share are dropped while training;
    left out, none are (V2 §2.2.4).

    Paper: 1.0 (V2 §2.2.4)
    Example: 1.0
    """
    drop_exempt_fraction: float = 0.1
    """Share of the sequences whose tokens are never dropped.

    Unit: fraction
    Paper: 0.1 (V2 §2.2.4)
    """

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
    """How tokens meet experts. Scores are always computed in float32."""

    score: RouterScore = "softmax"
    """softmax over all experts (V2), sigmoid of each (V3), noisy: a softmax over logits to which training adds N(0,
    1) softplus(x W_noise) (Shazeer §2.1), hash: each token id's expert is fixed and nothing is learned.

    Paper: softmax (V2 §2.2.1), sigmoid (V3 §2.1.2)
    """
    select: Select = field(default_factory=TopK)
    """Which experts a token goes to by their scores: top_k, group_limited or capacity."""
    selection_bias: bool = False
    """Whether one number per expert is added to the scores for selection only (V3 §2.1.2).

    Paper: true (V3)
    """
    normalize: bool = False
    """Whether the weights of the chosen experts are divided by their sum.

    Paper: false (V2), true (V3 §2.1.2)
    """
    scale: float = 1.0
    """What the weights of the chosen experts are multiplied by (routed_scaling_factor).

    Paper: 16.0 (V2), 1.0 (V2-Lite), 2.5 (V3)
    """
    jitter: float = 0.0
    """While training the router's input is multiplied by uniform numbers of 1 - jitter to 1 + jitter (Switch §2.4).
    """
    balance: BalanceSpec = field(default_factory=BalanceSpec)
    """What keeps experts evenly used while training."""

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
    """Routed experts beside shared ones, and the router that chooses among them (DeepSeekMoE §3)."""

    n_routed_experts: int
    """Experts that the router chooses among.

    Unit: experts
    Paper: 160 (V2 §3.1.2), 64 (V2-Lite), 256 (V3 §4.2)
    Example: 24
    """
    num_experts_per_tok: int
    """Routed experts that each token goes to.

    Unit: experts
    Paper: 6 (V2 §3.1.2), 8 (V3 §4.2)
    Example: 4
    """
    moe_intermediate_size: int
    """Width of one expert.

    Paper: 1536 (V2 §3.1.2), 1408 (V2-Lite), 2048 (V3 §4.2)
    Example: 64
    """
    n_shared_experts: int = 0
    """Experts that every token goes to, run as one feed-forward layer of their summed width.

    Unit: experts
    Paper: 2 (V2 §3.1.2), 1 (V3 §4.2)
    """
    router: RouterSpec = field(default_factory=RouterSpec)
    """How tokens meet experts: score, select, weigh, balance."""

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
