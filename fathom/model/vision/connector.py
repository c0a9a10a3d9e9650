"""Connectors: project the towers' features to the language model's embedding space.

X features of the low tower, Y of the high one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.spec.vision import SamSpec, SiglipSpec


class MLPConnector(nn.Module):
    """linear2(gelu(linear1(x)))."""

    def __init__(self, low: SiglipSpec, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(low.hidden_size, width)
        self.linear2 = nn.Linear(width, width)

    def forward(self, low_ITX: Tensor) -> Tensor:
        """Map (I, T, X) to (I, T, D)."""
        y_ITD: Tensor = self.linear2(F.gelu(self.linear1(low_ITX)))
        return y_ITD


class HybridConnector(nn.Module):
    """proj(gelu([high_proj(high); low_proj(low)])), each tower filling half of the width."""

    def __init__(self, low: SiglipSpec, high: SamSpec, width: int) -> None:
        super().__init__()
        self.low_proj = nn.Linear(low.hidden_size, width // 2)
        self.high_proj = nn.Linear(4 * high.output_channels, width // 2)
        self.proj = nn.Linear(width, width)

    def forward(self, low_ITX: Tensor, high_ITY: Tensor) -> Tensor:
        """Map (I, T, X) and (I, T, Y) to (I, T, D)."""
        both_ITD = torch.cat((self.high_proj(high_ITY), self.low_proj(low_ITX)), dim=-1)
        y_ITD: Tensor = self.proj(F.gelu(both_ITD))
        return y_ITD
