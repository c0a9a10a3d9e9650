"""Rotary frequencies and tables, with linear, YaRN and Llama 3 scaling.

B batch, T tokens, R rotated width, P = R / 2 pairs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fathom.errors import SpecError
from fathom.spec.rope import LinearScaling, Llama3Scaling, RopeSpec, YarnScaling


class RopeTable(NamedTuple):
    """cos and sin of each pair's angle at each position, float32, (B or 1, T, P); YaRN's factor is already in them."""

    cos_BTP: Tensor
    sin_BTP: Tensor


def frequencies(rope: RopeSpec, rope_dim: int) -> Tensor:
    """Return the angle per position of each pair: float32 (P,) on the CPU."""
    exponents_P = torch.arange(0, rope_dim, 2, dtype=torch.float32, device="cpu") / rope_dim
    plain_P = 1.0 / (rope.theta**exponents_P)
    match rope.scaling:
        case None:
            return plain_P
        case LinearScaling(factor=factor):
            return plain_P / factor
        case YarnScaling() as yarn:
            return _yarn(plain_P, yarn, rope.theta, rope_dim)
        case Llama3Scaling() as llama3:
            return _llama3(plain_P, llama3)


def _yarn(plain_P: Tensor, yarn: YarnScaling, theta: float, rope_dim: int) -> Tensor:
    """Keep high frequencies, divide low ones by the factor, ramp between, linear in the pair index (YaRN).

    The ramp runs from the pair that turns ``beta_fast`` times over the original context to the one that turns
    ``beta_slow`` times (DeepSeek's published code; YaRN §3.2 ramps in the number of turns instead).
    """

    if theta == 1:
        raise SpecError("rope.theta", "1 turns every pair alike, which yarn cannot scale", "give a larger base")

    def pair_turning(turns: float) -> float:
        return (
            rope_dim * math.log(yarn.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))
        )

    low, high = pair_turning(yarn.beta_fast), pair_turning(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope_dim - 1)
    if low == high:
        high += 0.001
    ramp_P = ((torch.arange(rope_dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(0, 1)
    kept_P = 1 - ramp_P
    return plain_P / yarn.factor * (1 - kept_P) + plain_P * kept_P


def _llama3(plain_P: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Divide long wavelengths by the factor, keep short ones, blend between (Llama 3.1)."""
    context = scaling.original_max_position_embeddings
    wavelength_P = 2 * math.pi / plain_P
    blend_P = (context / wavelength_P - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blended_P = (1 - blend_P) * plain_P / scaling.factor + blend_P * plain_P
    long_P = wavelength_P > context / scaling.low_freq_factor
    short_P = wavelength_P < context / scaling.high_freq_factor
    return torch.where(long_P, plain_P / scaling.factor, torch.where(short_P, plain_P, blended_P))


class Rope:
    """Computes the rotary tables of one model, in float32 whatever the model's dtype."""

    def __init__(self, rope: RopeSpec, rope_dim: int) -> None:
        self.layout = rope.layout
        self.scale = rope.scaling.rotation_scale if isinstance(rope.scaling, YarnScaling) else 1.0
        self._frequencies_P = frequencies(rope, rope_dim)

    def table(self, positions_BT: Tensor) -> RopeTable:
        """Return the table at integer ``positions_BT`` (B or 1, T), on their device."""
        if self._frequencies_P.device != positions_BT.device:
            self._frequencies_P = self._frequencies_P.to(positions_BT.device)
        angles_BTP = positions_BT[..., None].float() * self._frequencies_P
        cos_BTP, sin_BTP = angles_BTP.cos(), angles_BTP.sin()
        if self.scale != 1.0:
            cos_BTP, sin_BTP = cos_BTP * self.scale, sin_BTP * self.scale
        return RopeTable(cos_BTP, sin_BTP)
