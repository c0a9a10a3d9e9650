"""Connectors: project the towers' features to the language model's embedding space.

I images, N image tokens, L features of the low tower, G of the high one, D hidden size of the language model.
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

    def forward(self, low_INL: Tensor) -> Tensor:
        """Map (I, N, L) to (I, N, D)."""
        y_IND: Tensor = self.linear2(F.gelu(self.linear1(low_INL)))
        return y_IND


class HybridConnector(nn.Module):
    """proj(gelu([high_proj(high); low_proj(low)])), each tower filling half of the width."""

    def __init__(self, low: SiglipSpec, high: SamSpec, width: int) -> None:
        super().__init__()
        self.low_proj = nn.Linear(low.hidden_size, width // 2)
        self.high_proj = nn.Linear(4 * high.output_channels, width // 2)
        self.proj = nn.Linear(width, width)

    def forward(self, low_INL: Tensor, high_ING: Tensor) -> Tensor:
        """Map (I, N, L) and (I, N, G) to (I, N, D)."""
        both_IND = torch.cat((self.high_proj(high_ING), self.low_proj(low_INL)), dim=-1)
        y_IND: Tensor = self.proj(F.gelu(both_IND))
        return y_IND
