"""The losses of post-training: policy optimization, preferences, reward models, distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fathom.errors import SpecError
from fathom.spec import check

KlEstimator = Literal["k1", "k2", "k3"]
KlPlace = Literal["loss", "reward", "advantage"]
LossNormalization = Literal["sequence", "token", "constant"]
RatioLevel = Literal["token", "sequence", "sequence_mean"]
Divergence = Literal["reverse_kl", "forward_kl", "jensen_shannon"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KlPenalty:
    """Keep the policy near a reference: a weight times an estimate of KL(policy || reference) from sampled tokens.

    ``fathom.posttrain.losses.kl`` says which combinations have the right gradient.
    """

    estimator: KlEstimator = "k3"
    """With d = log policy - log reference, k1 is d, k2 is d^2 / 2, and k3 is exp(-d) + d - 1.

    Paper: k3 (DeepSeekMath eq 4)
    """
    beta: float = 0.04
    """Weight of the estimate.

    Paper: 0.04 (DeepSeekMath §4.2), 0.001 (R1 v2 §2.1)
    """
    place: KlPlace = "loss"
    """In the loss; off each answer's reward before the group's advantages; or off each token's advantage.

    Paper: loss (DeepSeekMath eq 3)
    """
    level: Literal["token", "sequence"] = "token"
    """token estimates from single tokens, sequence from the probabilities of whole answers.

    Paper: token (DeepSeekMath eq 4), sequence (V2, V3, R1)
    """
    corrected: bool = False
    """Whether the estimate is multiplied by the ratio policy / old policy."""

    def __post_init__(self) -> None:
        check.one_of("estimator", self.estimator, ("k1", "k2", "k3"))
        check.not_negative("beta", self.beta)
        check.one_of("place", self.place, ("loss", "reward", "advantage"))
        check.one_of("level", self.level, ("token", "sequence"))
        if self.place != "loss" and self.level != "token":
            raise SpecError("level", f"{self.level!r} has a meaning in the loss only", "use token or set place to loss")
        if self.place != "loss" and self.corrected:
            raise SpecError("corrected", "has a meaning in the loss only", "leave it out or set place to loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageSpec:
    """How rewards become advantages within a group of answers to one prompt.

    The paper's process supervision knows step rewards only. Here what other rewards give an answer is one more step,
    which ends with its last token: each kind of reward is compared with its own mean over the group, and all are
    divided by the root of the sum of the kinds' variances. Either alone is the paper's, and weights keep their
    meaning.
    """

    supervision: Literal["outcome", "process"] = "outcome"
    """outcome rewards an answer (DeepSeekMath §4.1.2), process its steps (§4.1.3).

    Paper: outcome (DeepSeekMath §4.1.2, R1)
    """
    scale: Literal["std", "none"] = "std"
    """std divides by the group's standard deviation + eps; none leaves it out (Dr. GRPO).

    Paper: std (DeepSeekMath §4.1.2)
    """
    std: Literal["population", "sample"] = "population"
    """Which standard deviation: of the population or of a sample; the papers do not say."""
    eps: float = 1e-6
    """Added to the standard deviation; the papers name none."""

    def __post_init__(self) -> None:
        check.one_of("supervision", self.supervision, ("outcome", "process"))
        check.one_of("scale", self.scale, ("std", "none"))
        check.one_of("std", self.std, ("population", "sample"))
        check.not_negative("eps", self.eps)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """GRPO and its relatives: the ratio policy / old policy is clipped and weighs each answer's advantage."""

    kind: ClassVar[str] = "policy"
    clip_low: float = 0.2
    """The ratio policy / old policy is cut at 1 - clip_low from below.

    Paper: 10 (R1 v2 §3.2.1)
    """
    clip_high: float | None = None
    """The ratio is cut at 1 + clip_high from above; left out, clip_low (DAPO's clip-higher sets it larger); inf cuts
    nothing.

    Paper: 10 (R1 v2 §3.2.1)
    Example: 0.28
    """
    dual_clip: float | None = None
    """Bound of the ratio where the advantage is negative, above 1; left out, there is none.

    Example: 3.0
    """
    normalize: LossNormalization = "sequence"
    """sequence: the mean over an answer's tokens, then over answers. token: the mean over all tokens. constant: the
    sum divided by answers x constant_length (Dr. GRPO).

    Paper: sequence (DeepSeekMath eq 3)
    """
    constant_length: int | None = None
    """The length that normalize = "constant" divides by: the most tokens an answer may have.

    Unit: tokens
    Example: 128
    """
    ratio: RatioLevel = "token"
    """Each token's ratio (DeepSeekMath eq 3), the whole answer's (sequence: V2 eq 32, V3 eq 26, R1 eq 1), or its
    geometric mean over the answer's tokens (sequence_mean: GSPO).

    Paper: token (DeepSeekMath eq 3), sequence (V2 eq 32, V3 eq 26)
    """
    kl: KlPenalty | None = None
    """What keeps the policy near a reference; left out, nothing does, and no reference is held."""
    advantage: AdvantageSpec = field(default_factory=AdvantageSpec)
    """How rewards become advantages within a group."""

    def __post_init__(self) -> None:
        for name, clip in (("clip_low", self.clip_low), ("clip_high", self.upper_clip)):
            if math.isnan(clip) or clip <= 0:
                raise SpecError(
                    name, f"must be above 0, got {clip}", "give a positive number, or inf to cut nothing", alone=True
                )
        if self.dual_clip is not None and not (math.isfinite(self.dual_clip) and self.dual_clip > 1):
            raise SpecError(
                "dual_clip", f"must be above 1, got {self.dual_clip}", "give a bound as 3, or leave it out", alone=True
            )
        check.one_of("normalize", self.normalize, ("sequence", "token", "constant"))
        check.one_of("ratio", self.ratio, ("token", "sequence", "sequence_mean"))
        if self.normalize == "constant" and self.constant_length is None:
            raise SpecError("constant_length", "is missing", "give the most tokens an answer may have")
        if self.constant_length is not None:
            check.positive("constant_length", self.constant_length)
            if self.normalize != "constant":
                problem = f"{self.constant_length} is not used by normalize {self.normalize!r}"
                raise SpecError("constant_length", problem, "leave it out or set normalize to constant")

    @property
    def by_token(self) -> bool:
        """Whether the loss is a sum over tokens of functions of each one's log-probability alone."""
        return self.ratio == "token" and (self.kl is None or self.kl.level == "token")

    @property
    def upper_clip(self) -> float:
        """How far above 1 the ratio may go: ``clip_high``, or ``clip_low`` where that is not given."""
        return self.clip_low if self.clip_high is None else self.clip_high


@dataclass(frozen=True, slots=True, kw_only=True)
class DpoLoss:
    """Direct preference optimization (Rafailov 2023, eq 7)."""

    kind: ClassVar[str] = "dpo"
    beta: float = 0.1
    """How strongly the policy is held near the model it began with."""
    label_smoothing: float = 0.0
    """Share of pairs taken to be the wrong way round (conservative DPO).

    Unit: fraction
    """
    average: bool = False
    """Whether log-probabilities are compared per token, not of whole answers."""

    def __post_init__(self) -> None:
        check.positive("beta", self.beta)
        check.fraction("label_smoothing", self.label_smoothing, below=0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairwiseLoss:
    """A reward model from pairs: Bradley-Terry, the better answer ahead."""

    kind: ClassVar[str] = "pairwise"
    margin: float = 0.0
    """How far the better answer's score should be ahead at least."""

    def __post_init__(self) -> None:
        check.not_negative("margin", self.margin)


@dataclass(frozen=True, slots=True, kw_only=True)
class PointwiseLoss:
    """A reward model from single answers with a score each."""

    kind: ClassVar[str] = "pointwise"
    form: Literal["mse", "bce"] = "mse"
    """mse is the squared error; bce takes the score as log-odds."""

    def __post_init__(self) -> None:
        check.one_of("form", self.form, ("mse", "bce"))


RewardModelLoss = PairwiseLoss | PointwiseLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationLoss:
    """How far a student is from a teacher, token by token over the whole vocabulary."""

    kind: ClassVar[str] = "distillation"
    divergence: Divergence = "reverse_kl"
    """reverse_kl is KL(student || teacher), forward_kl KL(teacher || student), jensen_shannon is mix KL(teacher || m)
    + (1 - mix) KL(student || m) with m = mix teacher + (1 - mix) student (GKD, Agarwal 2024).
    """
    mix: float = 0.5
    """The teacher's share in the mixture of jensen_shannon.

    Unit: fraction
    """
    temperature: float = 1.0
    """Temperature of both distributions."""

    def __post_init__(self) -> None:
        check.one_of("divergence", self.divergence, ("reverse_kl", "forward_kl", "jensen_shannon"))
        if not 0 < self.mix < 1:
            raise SpecError(
                "mix", f"must lie between 0 and 1, got {self.mix}", "name forward_kl or reverse_kl instead", alone=True
            )
        check.positive("temperature", self.temperature)


PosttrainLoss = PolicyLoss | DpoLoss | PairwiseLoss | PointwiseLoss | DistillationLoss
