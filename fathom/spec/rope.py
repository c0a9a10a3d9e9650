"""Rotary position embedding: base, layout of the rotated pairs, and length scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from fathom.spec import check

RopeLayout = Literal["half", "interleaved"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """Position interpolation: positions are divided by a factor (DeepSeek-Coder §3.6)."""

    kind: ClassVar[str] = "linear"
    factor: float
    """What positions are divided by.

    Paper: 4 (Coder §3.6)
    Example: 4.0
    """

    def __post_init__(self) -> None:
        check.positive("factor", self.factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """YaRN as DeepSeek-V2 and V3 apply it (V2 §3.1.4, V3 §4.3).

    cos and sin are multiplied by ``attention_factor`` when it is given, otherwise by m(factor, mscale) / m(factor,
    mscale_all_dim) when both are given, otherwise by m(factor, 1), where m(s, c) = 0.1 c ln s + 1.
    """

    kind: ClassVar[str] = "yarn"
    factor: float
    """How many times longer the context becomes.

    Paper: 40 (V2 §3.1.4, V3 §4.3)
    Example: 4.0
    """
    original_max_position_embeddings: int
    """The context the model was trained with before.

    Unit: tokens
    Paper: 4096 (V2, V3)
    Example: 256
    """
    beta_fast: float = 32.0
    """Pairs that turn more often than this within the original context keep their frequency.

    Unit: rotations
    Paper: 32 (V2 §3.1.4)
    """
    beta_slow: float = 1.0
    """Pairs that turn less often than this are slowed down by the whole factor.

    Unit: rotations
    Paper: 1 (V2 §3.1.4)
    """
    mscale: float | None = None
    """Weight c of the temperature m(s, c) = 0.1 c ln s + 1 on cos and sin, together with mscale_all_dim.

    Paper: 0.707 (V2), 1.0 (V3)
    Example: 0.707
    """
    mscale_all_dim: float | None = None
    """The same weight for MLA's softmax scale, which is multiplied by m(factor, mscale_all_dim) squared.

    Paper: 0.707 (V2), 1.0 (V3)
    Example: 0.707
    """
    attention_factor: float | None = None
    """What cos and sin are multiplied by, in place of what follows from mscale and mscale_all_dim.

    Example: 1.0
    """
    truncate: bool = True
    """Whether the bounds of the ramp between kept and slowed pairs are rounded to whole pairs.

    Paper: true (V2, V3)
    """

    def __post_init__(self) -> None:
        check.positive("factor", self.factor)
        check.positive("original_max_position_embeddings", self.original_max_position_embeddings)
        for name in ("factor", "beta_slow", "beta_fast"):
            check.fraction(name, getattr(self, name), above=1e-6, below=1e6)
        for name in ("mscale", "mscale_all_dim", "attention_factor"):
            value = getattr(self, name)
            if value is not None:
                check.fraction(name, value, above=-1e6, below=1e6)

    @staticmethod
    def temperature(factor: float, mscale: float) -> float:
        """Return m(s, c) = 0.1 c ln s + 1, or 1 where nothing is stretched."""
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    @property
    def rotation_scale(self) -> float:
        """The factor on cos and sin."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self.temperature(self.factor, self.mscale) / self.temperature(self.factor, self.mscale_all_dim)
        return self.temperature(self.factor, 1.0)

    @property
    def softmax_multiplier(self) -> float:
        """The factor on MLA's softmax scale: m(factor, mscale_all_dim) squared."""
        return self.temperature(self.factor, self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's frequency-dependent scaling, which the R1 Llama distills carry."""

    kind: ClassVar[str] = "llama3"
    factor: float
    """How many times longer the context becomes.

    Example: 8.0
    """
    original_max_position_embeddings: int
    """The context the model was trained with before.

    Unit: tokens
    Example: 8192
    """
    low_freq_factor: float = 1.0
    """Pairs that turn less often than this within the original context are slowed down by the whole factor.

    Unit: rotations
    """
    high_freq_factor: float = 4.0
    """Pairs that turn more often than this keep their frequency.

    Unit: rotations
    """

    def __post_init__(self) -> None:
        check.positive("factor", self.factor)
        check.positive("original_max_position_embeddings", self.original_max_position_embeddings)
        check.positive("low_freq_factor", self.low_freq_factor)
        check.positive("high_freq_factor", self.high_freq_factor - self.low_freq_factor)


RopeScaling = LinearScaling | YarnScaling | Llama3Scaling


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Rotary embedding of the rotated part of queries and keys."""

    theta: float = 10_000.0
    """Base of the angles' frequencies: larger ones suit longer contexts.

    Paper: 10000 (V2, V3), 100000 (Coder §3.6)
    """
    layout: RopeLayout = "half"
    """Which columns form a pair: half pairs (i, i + dim/2), as Llama's checkpoints do; interleaved pairs (2i, 2i +
    1), as those of DeepSeek-V2 and V3 do.

    Paper: interleaved (V2, V3)
    """
    scaling: RopeScaling | None = None
    """How positions are scaled to a longer context than the model was trained with; left out, they are not."""

    def __post_init__(self) -> None:
        check.fraction("theta", self.theta, above=1e-6, below=1e30)
        check.one_of("layout", self.layout, ("half", "interleaved"))
