"""Block-quantized FP8 as DeepSeek-V3 publishes it: E4M3 values and one float32 multiplier per block of a matrix.

A matrix of M rows and N columns has ceil(M / rows) x ceil(N / columns) scales, ``weight_scale_inv`` on disk; blocks
at its edges are cut short. An element is its E4M3 value times the scale of its block (V3 §3.3; DeepSeek-V3
README_WEIGHTS). Scales in powers of two (``scale_fmt`` ue8m0) are multiplied just the same.

M rows, N columns, P and Q blocks down and across.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BlockShape = tuple[int, int]
"""Rows and columns of a block."""

BLOCK_SHAPE: BlockShape = (128, 128)
"""The block shape of the released checkpoints."""
E4M3_MAX = torch.finfo(torch.float8_e4m3fn).max
"""448, to which the largest magnitude of each block is scaled."""


def scale_shape(shape: tuple[int, ...], block: BlockShape = BLOCK_SHAPE) -> tuple[int, int]:
    """Return how many blocks a matrix has, down and across."""
    rows, columns = shape
    return math.ceil(rows / block[0]), math.ceil(columns / block[1])


def dequantize(
    values_MN: Tensor, scale_PQ: Tensor, *, block: BlockShape = BLOCK_SHAPE, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Multiply every block by its scale in float32 and round to ``dtype``; one row of blocks at a time is widened."""
    result_MN = torch.empty(values_MN.shape, dtype=dtype, device=values_MN.device)
    wide_PN = _across(scale_PQ.float(), values_MN.shape[1], block)
    for index, scale_N in enumerate(wide_PN):
        rows = slice(index * block[0], (index + 1) * block[0])
        result_MN[rows] = values_MN[rows].float() * scale_N
    return result_MN


def quantize(matrix_MN: Tensor, *, block: BlockShape = BLOCK_SHAPE) -> tuple[Tensor, Tensor]:
    """Return E4M3 values and float32 scales: each block's largest magnitude over 448, or 1 where all is zero.

    A value that is not finite makes its block's scale not finite.
    """
    values_MN = torch.empty(matrix_MN.shape, dtype=torch.float8_e4m3fn, device=matrix_MN.device)
    scale_PQ = torch.empty(scale_shape(tuple(matrix_MN.shape), block), device=matrix_MN.device)
    columns = matrix_MN.shape[1]
    for index, scale_Q in enumerate(scale_PQ):
        rows = slice(index * block[0], (index + 1) * block[0])
        strip_RN = matrix_MN[rows].float()
        largest_N = torch.nn.functional.pad(strip_RN.abs().amax(0), (0, -columns % block[1]))
        largest_Q = largest_N.view(-1, block[1]).amax(1)
        scale_Q.copy_(torch.where(largest_Q == 0, 1.0, largest_Q / E4M3_MAX).clamp_min(torch.finfo().tiny))
        values_MN[rows] = (strip_RN / _across(scale_Q, columns, block)).to(torch.float8_e4m3fn)
    return values_MN, scale_PQ


def _across(scale: Tensor, columns: int, block: BlockShape) -> Tensor:
    """Expand scales over the columns of their blocks."""
    return scale.repeat_interleave(block[1], dim=-1)[..., :columns]
