"""What the tests of quantized models share: what they read, and how far two results are apart."""

from __future__ import annotations

import torch
from torch import Tensor


def tokens(count: int) -> Tensor:
    """Tokens of one sequence."""
    return torch.randint(0, 100, (1, count), generator=torch.Generator().manual_seed(1))


def error(actual: Tensor, expected: Tensor) -> float:
    """The distance relative to what is expected."""
    return float((actual - expected).norm() / expected.norm())
