"""RMSNorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fathom import kernels


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; computed in float32, returned in x's dtype."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return kernels.rms_norm(x, self.weight, self.eps)
