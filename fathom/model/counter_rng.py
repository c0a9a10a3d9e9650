"""Random numbers as a function of a seed and a place, without any generator.

A draw depends on its sequence's seed and its position alone, so it is the same on every device, in every micro-batch
and when a layer is recomputed in the backward pass; and a compiler sees nothing but integer arithmetic. The hash is
the finaliser of SplitMix64 over a Weyl sequence (Steele, Lea and Flood 2014).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The 64-bit pattern as a signed integer, which is what int64 tensors multiply with."""
    return value - (1 << 64) if value >= 1 << 63 else value


_STEP = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def fold_in(seeds_B: Tensor, number: int) -> Tensor:
    """New seeds, one stream for each ``number``: int64 like ``seeds_B``."""
    return splitmix64(seeds_B + _signed((number + 1) * _STEP % (1 << 64)))


def uniform(seeds_B: Tensor, *shape: int) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24: float32 (B, *shape)."""
    counter = torch.arange(math.prod(shape), device=seeds_B.device)
    bits = splitmix64(seeds_B[:, None] + counter * _STEP)
    return (_shifted(bits, 40).to(torch.float32) * 2.0**-24).view(-1, *shape)


def normal(seeds_B: Tensor, *shape: int) -> Tensor:
    """Standard normal numbers, by Box and Muller's formula: float32 (B, *shape)."""
    radius = (-2.0 * torch.log1p(-uniform(fold_in(seeds_B, 0), *shape))).sqrt()
    return radius * torch.cos(2.0 * math.pi * uniform(fold_in(seeds_B, 1), *shape))


def splitmix64(values: Tensor) -> Tensor:
    """Hash every int64 to another, one to one; arithmetic wraps around."""
    values = (values ^ _shifted(values, 30)) * _FIRST
    values = (values ^ _shifted(values, 27)) * _SECOND
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, places: int) -> Tensor:
    """Shift right, filling with zeros; int64's own shift fills with the sign."""
    return (values >> places) & ((1 << (64 - places)) - 1)
