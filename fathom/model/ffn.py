"""The dense feed-forward layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fathom import kernels
from fathom.kernels import swiglu
from fathom.model.adapters.low_rank import LowRankUpdate
from fathom.model.linear import Linear


class GateUpLinear(nn.Module):
    """The gate and up projections of a SwiGLU as one product, gate first: ``weight`` (2, F, D), ``bias`` (2, F).

    They have a dimension of their own, so that a shard along F holds the same rows of both. ``lora`` adds to both.
    """

    lora: LowRankUpdate | None

    def __init__(self, hidden: int, intermediate: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, intermediate, hidden))
        self.bias = nn.Parameter(torch.empty(2, intermediate)) if bias else None
        nn.init.kaiming_uniform_(self.weight.detach().flatten(0, 1), a=math.sqrt(5))  # as nn.Linear's
        if self.bias is not None:
            nn.init.uniform_(self.bias, -(hidden**-0.5), hidden**-0.5)
        self.lora = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., 2F), the gate's F columns first."""
        y = kernels.linear(x, self.weight.flatten(0, 1), None if self.bias is None else self.bias.flatten())
        return y if self.lora is None else y + self.lora(x)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden: int, intermediate: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_up_proj = GateUpLinear(hidden, intermediate, bias=bias)
        self.down_proj = Linear(intermediate, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        gate_up, down = self.gate_up_proj(x), self.down_proj
        if torch.is_grad_enabled() and isinstance(down, Linear) and down.is_plain:
            return kernels.swiglu_linear(gate_up, down.weight)
        y: Tensor = down(swiglu(gate_up))
        return y
