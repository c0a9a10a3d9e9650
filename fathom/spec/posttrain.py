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
    """Keep the policy near a reference: ``beta`` times an estimate of KL(policy || reference) from sampled tokens.

    With d = log policy - log reference, k1 is d, k2 is d^2 / 2, and k3 is exp(-d) + d - 1 (DeepSeekMath eq 4).
    ``place``: in the ``loss``; off each answer's ``reward`` before the group's advantages; or off each token's
    ``advantage``. ``level`` sequence estimates from the probabilities of whole answers, as V2, V3 and R1 print it.
    ``corrected`` multiplies the estimate by the ratio policy / old policy. ``fathom.posttrain.losses.kl`` says which of
    these have the right gradient.
    """

    estimator: KlEstimator = "k3"
    beta: float = 0.04
    place: KlPlace = "loss"
    level: Literal["token", "sequence"] = "token"
    corrected: bool = False

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

    ``outcome`` rewards an answer, ``process`` its steps (DeepSeekMath §4.1.2 and §4.1.3). ``scale`` std divides by the
    group's standard deviation + ``eps``; none leaves it out (Dr. GRPO). The papers name neither the kind of deviation
    nor ``eps``.

    The paper's process supervision knows step rewards only. Here what other rewards give an answer is one more step,
    which ends with its last token: each kind of reward is compared with its own mean over the group, and all are
    divided by the root of the sum of the kinds' variances. Either alone is the paper's, and weights keep their meaning.
    """

    supervision: Literal["outcome", "process"] = "outcome"
    scale: Literal["std", "none"] = "std"
    std: Literal["population", "sample"] = "population"
    eps: float = 1e-6

    def __post_init__(self) -> None:
        check.one_of("supervision", self.supervision, ("outcome", "process"))
        check.one_of("scale", self.scale, ("std", "none"))
        check.one_of("std", self.std, ("population", "sample"))
        check.not_negative("eps", self.eps)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """GRPO and its relatives.

    The ratio policy / old policy is cut to [1 - clip_low, 1 + clip_high]; ``clip_high`` is ``clip_low`` unless given
    (DAPO's clip-higher), inf cuts nothing, and R1 uses 10. ``dual_clip`` bounds the ratio where the advantage is
    negative.
    ``ratio`` is each token's (DeepSeekMath eq 3), the whole answer's (V2 eq 32, V3 eq 26, R1 eq 1), or its geometric
    mean over the answer's tokens (GSPO).
    ``normalize``: ``sequence`` is the mean over an answer's tokens, then over answers; ``token`` the mean over all
    tokens; ``constant`` the sum divided by answers x ``constant_length`` (Dr. GRPO).
    """

    kind: ClassVar[str] = "policy"
    clip_low: float = 0.2
    clip_high: float | None = None
    dual_clip: float | None = None
    normalize: LossNormalization = "sequence"
    constant_length: int | None = None
    ratio: RatioLevel = "token"
    kl: KlPenalty | None = None
    advantage: AdvantageSpec = field(default_factory=AdvantageSpec)

    def __post_init__(self) -> None:
        for name, clip in (("clip_low", self.clip_low), ("clip_high", self.upper_clip)):
            if math.isnan(clip) or clip <= 0:
                raise SpecError(name, f"must be above 0, got {clip}", "give a positive number, or inf to cut nothing")
        if self.dual_clip is not None and not (math.isfinite(self.dual_clip) and self.dual_clip > 1):
            raise SpecError("dual_clip", f"must be above 1, got {self.dual_clip}", "give a bound as 3, or leave it out")
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
    """Direct preference optimization (Rafailov 2023, eq 7).

    ``label_smoothing`` is the share of pairs taken to be the wrong way round (conservative DPO). ``average`` compares
    log-probabilities per token, not of whole answers.
    """

    kind: ClassVar[str] = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0
    average: bool = False

    def __post_init__(self) -> None:
        check.positive("beta", self.beta)
        check.fraction("label_smoothing", self.label_smoothing, below=0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairwiseLoss:
    """A reward model from pairs: Bradley-Terry, the better answer ahead by at least ``margin``."""

    kind: ClassVar[str] = "pairwise"
    margin: float = 0.0

    def __post_init__(self) -> None:
        check.not_negative("margin", self.margin)


@dataclass(frozen=True, slots=True, kw_only=True)
class PointwiseLoss:
    """A reward model from single answers: squared error (``mse``), or ``bce`` of a score read as log-odds."""

    kind: ClassVar[str] = "pointwise"
    form: Literal["mse", "bce"] = "mse"

    def __post_init__(self) -> None:
        check.one_of("form", self.form, ("mse", "bce"))


RewardModelLoss = PairwiseLoss | PointwiseLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationLoss:
    """How far a student is from a teacher, token by token over the whole vocabulary.

    ``reverse_kl`` is KL(student || teacher), ``forward_kl`` KL(teacher || student), and ``jensen_shannon`` is
    mix KL(teacher || m) + (1 - mix) KL(student || m) with m = mix teacher + (1 - mix) student (GKD, Agarwal 2024).
    """

    kind: ClassVar[str] = "distillation"
    divergence: Divergence = "reverse_kl"
    mix: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check.one_of("divergence", self.divergence, ("reverse_kl", "forward_kl", "jensen_shannon"))
        if not 0 < self.mix < 1:
            raise SpecError("mix", f"must lie between 0 and 1, got {self.mix}", "name forward_kl or reverse_kl instead")
        check.positive("temperature", self.temperature)


PosttrainLoss = PolicyLoss | DpoLoss | PairwiseLoss | PointwiseLoss | DistillationLoss
