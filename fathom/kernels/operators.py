"""Packed experts as a single operator, which a compiled program calls instead of looking inside.

Which experts run is known only when the numbers are there, and PyTorch's packed products are calls of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from fathom.kernels.packed import Packed, PackedExperts, cpu_layout


def compiles_inference() -> bool:
    """Whether the compiler is tracing a program that needs no gradient."""
    return torch.compiler.is_compiling() and not torch.is_grad_enabled()


def packed_experts(
    x_ND: Tensor, indices_NK: Tensor, weights_NK: Tensor, gate_up: PackedExperts, down: PackedExperts
) -> Tensor:
    """``packed_grouped_swiglu`` over all pairs."""
    shapes = [(each[0].rows, each[0].columns, each[0].group_size) for each in (gate_up.each, down.each)]
    tensors = [gate_up.values, gate_up.scales, down.values, down.scales]
    mixed_ND: Tensor = _packed_experts(x_ND, indices_NK, weights_NK, tensors, list(shapes[0]), list(shapes[1]))
    return mixed_ND


@torch.library.custom_op("fathom::packed_experts", mutates_args=())
def _packed_experts(
    x_ND: Tensor,
    indices_NK: Tensor,
    weights_NK: Tensor,
    packed: list[Tensor],
    gate_up_shape: list[int],
    down_shape: list[int],
) -> Tensor:
    from fathom.kernels.quantized_experts import packed_grouped_swiglu

    gate_up_values, gate_up_scales, down_values, down_scales = packed
    gate_up = PackedExperts(gate_up_values, gate_up_scales, _Each(gate_up_values, gate_up_scales, gate_up_shape))
    down = PackedExperts(down_values, down_scales, _Each(down_values, down_scales, down_shape))
    return packed_grouped_swiglu(x_ND, indices_NK, weights_NK, gate_up, down)


@_packed_experts.register_fake
def _packed_experts_shape(
    x_ND: Tensor,
    indices_NK: Tensor,
    weights_NK: Tensor,
    packed: list[Tensor],
    gate_up_shape: list[int],
    down_shape: list[int],
) -> Tensor:
    return torch.empty_like(x_ND)


class _Each(Sequence[Packed]):
    """The matrices of stacked experts, each made when it is asked for: an operator is given tensors only."""

    def __init__(self, values_E: Tensor, scales_E: Tensor, shape: Sequence[int]) -> None:
        self._values_E, self._scales_E = values_E, scales_E
        self._rows, self._columns, self._group_size = shape

    def __len__(self) -> int:
        return len(self._values_E)

    @overload
    def __getitem__(self, index: int) -> Packed: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Packed]: ...

    def __getitem__(self, index: int | slice) -> Packed | Sequence[Packed]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        tensors = self._values_E[index], self._scales_E[index]
        if self._values_E.dtype == torch.int8:
            return Packed("int8", self._rows, self._columns, self._group_size, *tensors)
        return Packed("int4", self._rows, self._columns, self._group_size, *tensors, cpu_layout())
