"""Block-quantized FP8 as DeepSeek-V3 publishes it: E4M3 values and one float32 multiplier per block of a matrix.

A matrix of X rows and Y columns has ceil(X / rows) x ceil(Y / columns) scales, ``weight_scale_inv`` on disk; blocks
at its edges are cut short. An element is its E4M3 value times the scale of its block (V3 §3.3; DeepSeek-V3
README_WEIGHTS). Scales in powers of two (``scale_fmt`` ue8m0) are multiplied just the same.

X rows, Y columns, A and Q blocks down and across, Z rows of a strip.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BlockShape = tuple[int, int]
"""Rows and columns of a block."""

BLOCK_SHAPE: BlockShape = (128, 128)
"""The block shape of the released checkpoints."""
FP8_KIND = "F8_E4M3"
"""The type of the values, as safetensors names it."""
E4M3_MAX = torch.finfo(torch.float8_e4m3fn).max
"""448, to which the largest magnitude of each block is scaled."""


def scale_shape(shape: tuple[int, ...], block: BlockShape = BLOCK_SHAPE) -> tuple[int, int]:
    """Return how many blocks a matrix has, down and across."""
    rows, columns = shape
    return math.ceil(rows / block[0]), math.ceil(columns / block[1])


def dequantize(
    values_XY: Tensor, scale_AQ: Tensor, *, block: BlockShape = BLOCK_SHAPE, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Multiply every block by its scale in float32 and round to ``dtype``; one row of blocks at a time is widened."""
    result_XY = torch.empty(values_XY.shape, dtype=dtype, device=values_XY.device)
    wide_AY = _across(scale_AQ.float(), values_XY.shape[1], block)
    for index, scale_Y in enumerate(wide_AY):
        rows = slice(index * block[0], (index + 1) * block[0])
        result_XY[rows] = values_XY[rows].float() * scale_Y
    return result_XY


def quantize(matrix_XY: Tensor, *, block: BlockShape = BLOCK_SHAPE) -> tuple[Tensor, Tensor]:
    """Return E4M3 values and float32 scales: each block's largest magnitude over 448, or 1 where all is zero.

    A value that is not finite makes its block's scale not finite.
    """
    values_XY = torch.empty(matrix_XY.shape, dtype=torch.float8_e4m3fn, device=matrix_XY.device)
    scale_AQ = torch.empty(scale_shape(tuple(matrix_XY.shape), block), device=matrix_XY.device)
    columns = matrix_XY.shape[1]
    for index, scale_Q in enumerate(scale_AQ):
        rows = slice(index * block[0], (index + 1) * block[0])
        strip_ZY = matrix_XY[rows].float()
        largest_Y = torch.nn.functional.pad(strip_ZY.abs().amax(0), (0, -columns % block[1]))
        largest_Q = largest_Y.view(-1, block[1]).amax(1)
        scale_Q.copy_(torch.where(largest_Q == 0, 1.0, largest_Q / E4M3_MAX).clamp_min(torch.finfo().tiny))
        values_XY[rows] = (strip_ZY / _across(scale_Q, columns, block)).to(torch.float8_e4m3fn)
    return values_XY, scale_AQ


def _across(scale: Tensor, columns: int, block: BlockShape) -> Tensor:
    """Expand scales over the columns of their blocks."""
    return scale.repeat_interleave(block[1], dim=-1)[..., :columns]
