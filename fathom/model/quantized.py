"""Linear layers and experts with int8 or int4 weights, for inference only.

N tokens, K inputs or experts per token, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn

from fathom import kernels
from fathom.errors import SpecError
from fathom.kernels.weight_formats import QuantizedExpertWeights, QuantizedWeight, dequantize
from fathom.model.moe import ExpertAssignment, RoutedExperts, TokenDispatcher


class _QuantizedModule(nn.Module):
    """What both share: no parameters for the weights, and no training mode."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode for ``mode`` False.

        Raises:
            SpecError: ``mode`` is True.
        """
        if mode:
            raise SpecError("weights", "in 8 or 4 bits cannot be trained", "open the model with plain weights")
        return super().train(False)


class QuantizedLinear(_QuantizedModule):
    """A linear layer computed by ``quantized_linear``; ``bias`` is not quantized."""

    def __init__(self, qweight: QuantizedWeight, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.qweight, self.bias = qweight, bias

    @property
    def weight(self) -> Tensor:
        """The dequantized weights, float32: a new tensor at each call."""
        return dequantize(self.qweight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N), like ``x`` in dtype."""
        y = kernels.quantized_linear(x, self.qweight)
        return y if self.bias is None else y.add_(self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.qweight = self.qweight.map(lambda tensor: fn(tensor).to(tensor.dtype))
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]


class QuantizedExperts(_QuantizedModule, RoutedExperts):
    """Routed experts computed by ``quantized_grouped_swiglu``."""

    def __init__(
        self, gate_up: QuantizedExpertWeights, down: QuantizedExpertWeights, dispatcher: TokenDispatcher | None = None
    ) -> None:
        super().__init__(dispatcher)
        self.gate_up, self.down = gate_up, down

    def grouped(self, x_MD: Tensor, assignment: ExpertAssignment) -> Tensor:
        """Products with the quantized weights, without gradient."""
        return kernels.quantized_grouped_swiglu(
            x_MD, assignment.indices_NK, assignment.weights_NK, self.gate_up, self.down, assignment.kept_NK
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.gate_up, self.down = (
            experts.map(lambda tensor: fn(tensor).to(tensor.dtype)) for experts in (self.gate_up, self.down)
        )
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]
