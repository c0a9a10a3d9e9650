"""Rotary frequencies and tables, with linear, YaRN and Llama 3 scaling.

Z = R / 2 rotated pairs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fathom.errors import SpecError
from fathom.model.device import to_device
from fathom.spec.rope import LinearScaling, Llama3Scaling, RopeSpec, YarnScaling


class RopeTable(NamedTuple):
    """cos and sin of each pair's angle at each position, float32, (B or 1, T, Z); YaRN's factor is already in them."""

    cos_BTZ: Tensor
    sin_BTZ: Tensor


def frequencies(rope: RopeSpec, rope_dim: int) -> Tensor:
    """Return the angle per position of each pair: float32 (Z,) on the CPU."""
    exponents_Z = torch.arange(0, rope_dim, 2, dtype=torch.float32, device="cpu") / rope_dim
    plain_Z = 1.0 / (rope.theta**exponents_Z)
    match rope.scaling:
        case None:
            return plain_Z
        case LinearScaling(factor=factor):
            return plain_Z / factor
        case YarnScaling() as yarn:
            return _yarn(plain_Z, yarn, rope.theta, rope_dim)
        case Llama3Scaling() as llama3:
            return _llama3(plain_Z, llama3)


def _yarn(plain_Z: Tensor, yarn: YarnScaling, theta: float, rope_dim: int) -> Tensor:
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
    ramp_Z = ((torch.arange(rope_dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(0, 1)
    kept_Z = 1 - ramp_Z
    return plain_Z / yarn.factor * (1 - kept_Z) + plain_Z * kept_Z


def _llama3(plain_Z: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Divide long wavelengths by the factor, keep short ones, blend between (Llama 3.1)."""
    context = scaling.original_max_position_embeddings
    wavelength_Z = 2 * math.pi / plain_Z
    blend_Z = (context / wavelength_Z - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blended_Z = (1 - blend_Z) * plain_Z / scaling.factor + blend_Z * plain_Z
    long_Z = wavelength_Z > context / scaling.low_freq_factor
    short_Z = wavelength_Z < context / scaling.high_freq_factor
    return torch.where(long_Z, plain_Z / scaling.factor, torch.where(short_Z, plain_Z, blended_Z))


class Rope:
    """Computes the rotary tables of one model, in float32 whatever the model's dtype."""

    def __init__(self, rope: RopeSpec, rope_dim: int) -> None:
        self.layout = rope.layout
        self.scale = rope.scaling.rotation_scale if isinstance(rope.scaling, YarnScaling) else 1.0
        self._frequencies_Z = frequencies(rope, rope_dim)

    def table(self, positions_BT: Tensor) -> RopeTable:
        """Return the table at integer ``positions_BT`` (B or 1, T), on their device."""
        if self._frequencies_Z.device != positions_BT.device:
            self._frequencies_Z = to_device(self._frequencies_Z.cpu(), positions_BT.device)
        angles_BTZ = positions_BT[..., None].float() * self._frequencies_Z
        cos_BTZ, sin_BTZ = angles_BTZ.cos(), angles_BTZ.sin()
        if self.scale != 1.0:
            cos_BTZ, sin_BTZ = cos_BTZ * self.scale, sin_BTZ * self.scale
        return RopeTable(cos_BTZ, sin_BTZ)
