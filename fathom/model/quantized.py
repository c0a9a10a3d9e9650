"""Layers with quantized weights, for inference, or frozen below adapters that are trained.

X pairs of one expert, Y inputs of a matrix, Z tokens that the experts of this process work on. X is
also what each of H heads of latent attention multiplies: P, or C of the latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar, Self, TypeVar, cast

import torch
from torch import Tensor, nn

from fathom import kernels
from fathom.errors import SpecError
from fathom.kernels.native.matrix import PackedExperts, PackedMatrix
from fathom.kernels.weight_formats import ExpertStack, WeightMatrix, dequantize
from fathom.model.adapters.low_rank import LowRankUpdate
from fathom.model.moe import ExpertAssignment, RoutedExperts, TokenDispatcher

W = TypeVar("W", bound=WeightMatrix | ExpertStack)


class QuantizedModule(nn.Module):
    """What all share: no parameters for the weights, and no training mode unless gradients pass through.

    With ``passes_gradient`` the products are those of ``frozen_quantized_linear``, in training and in evaluation.
    ``round_activations`` is that of ``kernels.quantized_linear``.
    """

    passes_gradient = False
    round_activations = True
    held: ClassVar[tuple[str, ...]] = ("qweight",)
    """The attributes that hold the quantized weights."""

    def quantized(self) -> Iterator[WeightMatrix | ExpertStack]:
        """Yield the quantized weights."""
        return (getattr(self, name) for name in self.held)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode for ``mode`` False.

        Raises:
            SpecError: ``mode`` is True and no gradient passes.
        """
        if mode and not self.passes_gradient:
            raise SpecError("weights", "in 8 or 4 bits cannot be trained", "open the model with plain weights")
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for name in self.held:
            setattr(self, name, _moved(getattr(self, name), fn))
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]


class QuantizedLinear(QuantizedModule):
    """A linear layer computed by ``quantized_linear``; ``bias`` is not quantized, and ``lora`` adds to the product."""

    lora: LowRankUpdate | None

    def __init__(
        self, qweight: WeightMatrix, bias: nn.Parameter | None = None, *, passes_gradient: bool = False
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
            y = kernels.quantized_linear(x, self.qweight, round_activations=self.round_activations)
        if self.bias is not None:
            y = y.add_(self.bias)
        return y if self.lora is None else y + self.lora(x)


class QuantizedExperts(QuantizedModule, RoutedExperts):
    """Routed experts computed by ``quantized_grouped_swiglu``, or one after another where they are adapted."""

    held = ("gate_up", "down")

    def __init__(
        self,
        gate_up: ExpertStack,
        down: ExpertStack,
        dispatcher: TokenDispatcher | None = None,
        *,
        passes_gradient: bool = False,
    ) -> None:
        super().__init__(dispatcher)
        self.gate_up, self.down, self.passes_gradient = gate_up, down, passes_gradient

    def grouped(self, x_ZD: Tensor, assignment: ExpertAssignment) -> Tensor:
        """Products with the quantized weights, without gradient to them."""
        if self.passes_gradient or self.is_adapted:
            return self.adapted(
                x_ZD,
                assignment,
                len(self.gate_up),
                lambda x_XD, expert: self._product(x_XD, self.gate_up[expert]),
                lambda x_XF, expert: self._product(x_XF, self.down[expert]),
            )
        return kernels.quantized_grouped_swiglu(
            x_ZD,
            assignment.indices_NK,
            assignment.weights_NK,
            self.gate_up,
            self.down,
            assignment.kept_NK,
            round_activations=self.round_activations,
        )

    def _product(self, x_XY: Tensor, qweight: WeightMatrix) -> Tensor:
        if self.passes_gradient:
            return kernels.frozen_quantized_linear(x_XY, qweight)
        return kernels.quantized_linear(x_XY, qweight, round_activations=self.round_activations)


class QuantizedEmbedding(QuantizedModule):
    """An embedding whose rows are unpacked as they are looked up; a tied head may hold the same matrix."""

    def __init__(self, qweight: PackedMatrix, dtype: torch.dtype) -> None:
        super().__init__()
        self.qweight = qweight
        self.register_buffer("_like", torch.empty(0, dtype=dtype), persistent=False)  # the dtype of what it returns
        self._like: Tensor

    @property
    def weight(self) -> Tensor:
        """The dequantized weights, float32: a new tensor at each call."""
        return dequantize(self.qweight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (...) to rows (..., D), in the model's dtype."""
        rows_ND = kernels.packed_rows(tokens.reshape(-1), self.qweight)
        return rows_ND.to(self._like.dtype).view(*tokens.shape, -1)


class QuantizedUpProjection(QuantizedModule):
    """``kv_b_proj`` of latent attention as two matrices of each head, both of which absorbed attention multiplies by.

    ``keys`` are H matrices (C, P), the key rows of the weight transposed, and ``values`` H matrices (U, C): the forms
    in which GGUF files hold them. ``lora`` adds to the product, as of a ``Linear``.
    """

    held = ("keys", "values")
    lora: LowRankUpdate | None

    def __init__(self, keys: PackedExperts, values: PackedExperts) -> None:
        super().__init__()
        self.keys, self.values, self.lora = keys, values, None

    @property
    def weight(self) -> Tensor:
        """The dequantized weights, float32 (H (P + U), C): a new tensor at each call."""
        return torch.cat([part for head in range(len(self.keys)) for part in self._head(head)])

    def forward(self, latent: Tensor) -> Tensor:
        """Rebuild the keys and values of all heads: (..., C) to (..., H (P + U)), with the weights dequantized."""
        y = latent @ self.weight.to(latent.dtype).t()
        return y if self.lora is None else y + self.lora(latent)

    def absorb_keys(self, q_HYP: Tensor) -> Tensor:
        """Return each head's queries times its key rows, (H, Y, C)."""
        return self._by_head(q_HYP, self.keys)

    def project_values(self, mixed_HYC: Tensor) -> Tensor:
        """Return each head's mixed latents times its value rows transposed, (H, Y, U)."""
        return self._by_head(mixed_HYC, self.values)

    def _by_head(self, x_HYX: Tensor, matrices: PackedExperts) -> Tensor:
        products = [
            kernels.quantized_linear(x_YX.contiguous(), matrices[head], round_activations=self.round_activations)
            for head, x_YX in enumerate(x_HYX)
        ]
        return torch.stack(products)

    def _head(self, head: int) -> tuple[Tensor, Tensor]:
        return dequantize(self.keys[head]).t(), dequantize(self.values[head])


def quantized_weights(model: nn.Module) -> Iterator[WeightMatrix | ExpertStack]:
    """Yield the quantized weights of a model, each once: a tied head's are the embedding's."""
    seen: set[int] = set()
    for module in model.modules():
        for weights in module.quantized() if isinstance(module, QuantizedModule) else ():
            packed = isinstance(weights, PackedMatrix | PackedExperts)
            place = (weights.data if packed else weights.values).data_ptr()  # type: ignore[union-attr]
            if place not in seen:
                seen.add(place)
                yield weights


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of all weights of a model, quantized or not."""
    plain = sum(tensor.nbytes for tensors in (model.parameters(), model.buffers()) for tensor in tensors)
    return plain + sum(weights.nbytes for weights in quantized_weights(model))


def _moved(weights: W, fn: Callable[[Tensor], Tensor]) -> W:
    """Return weights after a change that ``nn.Module.to`` and its like make: to another device, never of their dtype.

    Raises:
        SpecError: packed weights would leave the CPU.
    """
    if not isinstance(weights, PackedMatrix | PackedExperts):
        return cast(W, weights.map(lambda tensor: fn(tensor).to(tensor.dtype)))
    data = fn(weights.data)
    if data.device.type != "cpu":
        raise SpecError("device", "packed weights are for a CPU", f"open the model on {data.device.type} instead")
    return replace(weights, data=data)
