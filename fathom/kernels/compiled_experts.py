"""Packed experts of one token as a single operator, which a compiled program calls instead of looking inside.

Which experts run is known only when the numbers are there, and PyTorch's packed products are calls of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.kernels.elementwise import swiglu, widened
from fathom.kernels.packed import Packed, PackedExperts, cpu_layout
from fathom.kernels.quantized import multiply


def packed_experts_of_one(
    x_1D: Tensor, indices_1K: Tensor, weights_1K: Tensor, gate_up: PackedExperts, down: PackedExperts
) -> Tensor:
    """Sum over one token's K experts of weight times expert(token), (1, D) in ``x``'s dtype."""
    like_gate_up, like_down = gate_up.each[0], down.each[0]
    mixed_1D: Tensor = _operator(
        x_1D,
        indices_1K,
        weights_1K,
        [gate_up.values, gate_up.scales, down.values, down.scales],
        [like_gate_up.rows, like_gate_up.columns, like_gate_up.group_size],
        [like_down.rows, like_down.columns, like_down.group_size],
    )
    return mixed_1D


@torch.library.custom_op("fathom::packed_experts_of_one", mutates_args=())
def _operator(
    x_1D: Tensor,
    indices_1K: Tensor,
    weights_1K: Tensor,
    packed: list[Tensor],
    gate_up_shape: list[int],
    down_shape: list[int],
) -> Tensor:
    gate_up_values, gate_up_scales, down_values, down_scales = packed
    chosen, half_1D = indices_1K[0].tolist(), x_1D.to(torch.bfloat16)
    gate_up_KF = torch.cat(
        [multiply(half_1D, _one(gate_up_values, gate_up_scales, gate_up_shape, expert)) for expert in chosen]
    )
    hidden_KF = swiglu(gate_up_KF).split_with_sizes([1] * len(chosen))
    y_KD = torch.cat(
        [
            multiply(row_1F, _one(down_values, down_scales, down_shape, expert))
            for row_1F, expert in zip(hidden_KF, chosen, strict=True)
        ]
    )
    wide = widened(x_1D)
    return torch.mm(weights_1K.to(wide), y_KD.to(wide)).to(x_1D.dtype)


@_operator.register_fake
def _shape(
    x_1D: Tensor,
    indices_1K: Tensor,
    weights_1K: Tensor,
    packed: list[Tensor],
    gate_up_shape: list[int],
    down_shape: list[int],
) -> Tensor:
    return torch.empty_like(x_1D)


def _one(values_E: Tensor, scales_E: Tensor, shape: list[int], expert: int) -> Packed:
    rows, columns, group_size = shape
    if values_E.dtype == torch.int8:
        return Packed("int8", rows, columns, group_size, values_E[expert], scales_E[expert])
    return Packed("int4", rows, columns, group_size, values_E[expert], scales_E[expert], cpu_layout())
