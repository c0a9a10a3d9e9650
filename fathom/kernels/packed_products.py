"""Products with the native library's packed weights, for inference on a CPU.

X pairs of one expert; of one matrix X outputs and Y inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.kernels.elementwise import swiglu
from fathom.kernels.experts import dispatch_by_expert
from fathom.kernels.native.matrix import PackedExperts, PackedMatrix
from fathom.kernels.tensors import accumulation_dtype
from fathom.kernels.weight_formats import dequantize, row_tiles

_TILE_WEIGHTS = 2**19


def packed_linear(x: Tensor, matrix: PackedMatrix, *, round_activations: bool = True) -> Tensor:
    """Return x w^T, (..., Y) to (..., X), like ``x`` in dtype; products are of float32.

    ``round_activations`` rounds ``x`` to 8 bits in groups of 32 before it meets quantized weights, as llama.cpp does.
    A row's result depends on no other row. float64 multiplies unpacked tiles, exactly.
    """
    if x.dtype == torch.float64:
        x_NY = x.reshape(-1, matrix.columns)
        tiles = [torch.mm(x_NY, dequantize(matrix, x.dtype, tile).t()) for tile in row_tiles(matrix, _TILE_WEIGHTS)]
        return torch.cat(tiles, 1).view(*x.shape[:-1], matrix.rows)
    return matrix.product(x, quantize=round_activations)


def packed_rows(rows_N: Tensor, matrix: PackedMatrix) -> Tensor:
    """Return some rows of the weights, (N, Y) float32, as an embedding looks them up."""
    w_NY = torch.empty(len(rows_N), matrix.columns)
    for place, row in enumerate(rows_N.tolist()):
        w_NY[place] = matrix.unpack(slice(row, row + 1))[0]
    return w_NY


def packed_grouped_swiglu(
    x_ND: Tensor,
    indices_NK: Tensor,
    weights_NK: Tensor,
    gate_up: PackedExperts,
    down: PackedExperts,
    kept_NK: Tensor | None = None,
    *,
    round_activations: bool = True,
) -> Tensor:
    """Sum over each token's K experts of weight times expert(token), as ``grouped_swiglu``; see ``packed_linear``."""
    dispatch = dispatch_by_expert(indices_NK, kept_NK, len(gate_up))
    weights_M1 = weights_NK.reshape(-1)[dispatch.order_M].unsqueeze(1)
    wide = accumulation_dtype(x_ND)
    wide_ND, y_ND = x_ND.to(wide), torch.zeros_like(x_ND, dtype=wide)
    for expert, pairs in dispatch.slices():
        tokens_X = dispatch.tokens_M[pairs]
        hidden_XF = swiglu(
            packed_linear(wide_ND.index_select(0, tokens_X), gate_up[expert], round_activations=round_activations)
        )
        y_XD = packed_linear(hidden_XF, down[expert], round_activations=round_activations)
        y_ND.index_add_(0, tokens_X, y_XD * weights_M1[pairs].to(wide))
    return y_ND.to(x_ND.dtype)
