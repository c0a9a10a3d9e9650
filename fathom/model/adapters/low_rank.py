"""The low-rank update of one matrix, of a fused pair, or of stacked experts' matrices.

J inputs, Y outputs, X rows of the input, Z 2 for gate and up.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.model import counter_rng


class DropoutSeed:
    """The seed that all updates of a model draw dropout from; whoever trains sets it before each forward pass."""

    def __init__(self) -> None:
        self.value = 0


class LowRankUpdate(nn.Module):
    """scaling x B A, added to a weight (..., Y, J): ``A`` is (..., r, J) and ``B`` (..., Y, r).

    Leading dimensions are those of the weight: none for a linear layer, (2,) for fused gate and up projections, (E,)
    and (E, 2) for experts. ``B`` begins as zero, so that nothing changes before the first step. Dropout is a function
    of ``seed`` and ``salt``: a layer that is recomputed in the backward pass draws the same.
    """

    def __init__(
        self,
        a: Tensor,
        b: Tensor,
        scaling: float,
        *,
        dropout: float = 0.0,
        seed: DropoutSeed | None = None,
        salt: int = 0,
    ) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(a), nn.Parameter(b)
        self.scaling, self.dropout = scaling, dropout
        self._seed, self._salt = seed, salt

    @property
    def rank(self) -> int:
        """The rank r."""
        return self.A.shape[-2]

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., J) to what is added to the layer's output (..., Y), or (..., 2 Y) for a fused pair."""
        return self.product(x, self.A, self.B)

    def experts(self) -> list[tuple[Tensor, Tensor]]:
        """Return A and B of each expert."""
        return list(zip(self.A.unbind(0), self.B.unbind(0), strict=True))

    def product(self, x: Tensor, a: Tensor, b: Tensor, stream: int = 0) -> Tensor:
        """Return the product with the matrices of one expert, or of the layer; ``stream`` tells draws apart."""
        low = F.linear(self._dropped(x, stream), a.flatten(0, -2))
        if a.dim() == 2:
            return F.linear(low, b) * self.scaling
        low_ZXr = low.reshape(-1, *a.shape[:-1]).transpose(0, 1)
        y_XZY = torch.bmm(low_ZXr, b.mT).transpose(0, 1)
        return y_XZY.reshape(*x.shape[:-1], -1) * self.scaling

    def _dropped(self, x: Tensor, stream: int) -> Tensor:
        if not (self.training and self.dropout) or self._seed is None or not x.numel():
            return x
        seeds_1 = torch.tensor([self._seed.value], device=x.device)
        drawn = counter_rng.uniform(counter_rng.fold_in(counter_rng.fold_in(seeds_1, self._salt), stream), *x.shape)[0]
        return x * (drawn >= self.dropout).to(x.dtype) / (1.0 - self.dropout)


def initial_factors(shape: tuple[int, ...], rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return A and B for a weight of ``shape``: A as Kaiming's uniform with a = sqrt(5), B zero."""
    *lead, outputs, inputs = shape
    bound = 1.0 / math.sqrt(inputs)
    a = torch.empty(*lead, rank, inputs).uniform_(-bound, bound, generator=generator)
    return a, torch.zeros(*lead, outputs, rank)
