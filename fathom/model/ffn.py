"""The dense feed-forward layer."""

from __future__ import annotations

from torch import Tensor, nn

from fathom.kernels import swiglu
from fathom.model.linear import Linear


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), with gate and up in one product: ``gate_up_proj`` is (2F, D), gate first."""

    def __init__(self, hidden: int, intermediate: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_up_proj = Linear(hidden, 2 * intermediate, bias=bias)
        self.down_proj = Linear(intermediate, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        y: Tensor = self.down_proj(swiglu(self.gate_up_proj(x)))
        return y
