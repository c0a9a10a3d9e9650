"""The few hot operations behind one signature each; which version runs is chosen here and nowhere else."""

from __future__ import annotations

from fathom.kernels.reference import (
    grouped_swiglu,
    linear_cross_entropy,
    mean_linear_cross_entropy,
    rms_norm,
    rotate,
    swiglu,
)

__all__ = [
    "grouped_swiglu",
    "linear_cross_entropy",
    "mean_linear_cross_entropy",
    "rms_norm",
    "rotate",
    "swiglu",
]
