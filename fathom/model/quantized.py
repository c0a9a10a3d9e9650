"""Linear layers and experts with int8 or int4 weights, for inference, or frozen below adapters that are trained.

X pairs of one expert, Y inputs of a matrix, Z tokens that the experts of this process work on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn

from fathom import kernels
from fathom.errors import SpecError
from fathom.kernels.weight_formats import QuantizedExpertWeights, QuantizedWeight, dequantize
from fathom.model.adapters.low_rank import LowRankUpdate
from fathom.model.moe import ExpertAssignment, RoutedExperts, TokenDispatcher


class _QuantizedModule(nn.Module):
    """What both share: no parameters for the weights, and no training mode unless gradients pass through.

    With ``passes_gradient`` the products are those of ``frozen_quantized_linear``, in training and in evaluation.
    """

    passes_gradient: bool

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode for ``mode`` False.

        Raises:
            SpecError: ``mode`` is True and no gradient passes.
        """
        if mode and not self.passes_gradient:
            raise SpecError("weights", "in 8 or 4 bits cannot be trained", "open the model with plain weights")
        return super().train(mode)


class QuantizedLinear(_QuantizedModule):
    """A linear layer computed by ``quantized_linear``; ``bias`` is not quantized, and ``lora`` adds to the product."""

    lora: LowRankUpdate | None

    def __init__(
        self, qweight: QuantizedWeight, bias: nn.Parameter | None = None, *, passes_gradient: bool = False
    ) -> None:
        super().__init__()
        self.qweight, self.bias, self.lora, self.passes_gradient = qweight, bias, None, passes_gradient

    @property
    def weight(self) -> Tensor:
        """The dequantized weights, float32: a new tensor at each call."""
        return dequantize(self.qweight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., Y) to (..., outputs), like ``x`` in dtype."""
        if self.passes_gradient:
            y = kernels.frozen_quantized_linear(x, self.qweight)
        else:
            y = kernels.quantized_linear(x, self.qweight)
        if self.bias is not None:
            y = y.add_(self.bias)
        return y if self.lora is None else y + self.lora(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.qweight = self.qweight.map(lambda tensor: fn(tensor).to(tensor.dtype))
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]


class QuantizedExperts(_QuantizedModule, RoutedExperts):
    """Routed experts computed by ``quantized_grouped_swiglu``, or one after another where they are adapted."""

    def __init__(
        self,
        gate_up: QuantizedExpertWeights,
        down: QuantizedExpertWeights,
        dispatcher: TokenDispatcher | None = None,
        *,
        passes_gradient: bool = False,
    ) -> None:
        super().__init__(dispatcher)
        self.gate_up, self.down, self.passes_gradient = gate_up, down, passes_gradient

    def grouped(self, x_ZD: Tensor, assignment: ExpertAssignment) -> Tensor:
        """Products with the quantized weights, without gradient to them."""
        if self.passes_gradient or self.is_adapted:
            product = kernels.frozen_quantized_linear if self.passes_gradient else kernels.quantized_linear
            return self.adapted(
                x_ZD,
                assignment,
                len(self.gate_up.experts),
                lambda x_XD, expert: product(x_XD, self.gate_up.experts[expert]),
                lambda x_XF, expert: product(x_XF, self.down.experts[expert]),
            )
        return kernels.quantized_grouped_swiglu(
            x_ZD, assignment.indices_NK, assignment.weights_NK, self.gate_up, self.down, assignment.kept_NK
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.gate_up, self.down = (
            experts.map(lambda tensor: fn(tensor).to(tensor.dtype)) for experts in (self.gate_up, self.down)
        )
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]
