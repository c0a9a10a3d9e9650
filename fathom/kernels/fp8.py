"""Products with FP8 weights: E4M3 in blocks of 128 by 128, as DeepSeek-V3 is released and served (V3 §3.3).

X outputs, Y inputs, Z = Y / 128 groups of inputs, A and Q blocks down and across.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.kernels import reference

_BLOCK = 128
_LARGEST = torch.finfo(torch.float8_e4m3fn).max
_HOPPER = (9, 0)


def fp8_block_linear(x_NY: Tensor, values_XY: Tensor, scale_AQ: Tensor) -> Tensor:
    """Return x w^T, (N, X) like ``x``; ``scale_AQ`` (float32) multiplies each block of ``values_XY`` (E4M3).

    Hopper multiplies in FP8, with ``x`` quantized on the fly by a scale for every 128 inputs of every row, so that a
    row's result depends on no other. Elsewhere, and where K is no multiple of 512 or N none of 128, the weights are
    dequantized as a whole. The Hopper path follows PyTorch's documentation and has not run on such a GPU yet.
    """
    rows, columns = values_XY.shape
    fits = x_NY.dtype == torch.bfloat16 and columns % (4 * _BLOCK) == 0 and rows % _BLOCK == 0
    if fits and has_fp8_blocks(x_NY.device):
        return _scaled(x_NY, values_XY, scale_AQ)
    return reference.fp8_block_linear(x_NY, values_XY, scale_AQ)


def has_fp8_blocks(device: torch.device) -> bool:
    """Whether this device multiplies FP8 with scales by block: compute capability 9.0."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == _HOPPER


def quantize_rows(x_NY: Tensor) -> tuple[Tensor, Tensor]:
    """Round to E4M3 with a multiplier for every 128 inputs of every row: (N, Y) and float32 (N, Z)."""
    x_NZ128 = x_NY.float().reshape(len(x_NY), -1, _BLOCK)
    scale_NZ = (x_NZ128.abs().amax(-1) / _LARGEST).clamp_min_(torch.finfo(torch.float32).tiny)
    values_NZ128 = (x_NZ128 / scale_NZ.unsqueeze(-1)).to(torch.float8_e4m3fn)
    return values_NZ128.flatten(1), scale_NZ


def _scaled(x_NY: Tensor, values_XY: Tensor, scale_AQ: Tensor) -> Tensor:
    rows_NY, scale_NZ = quantize_rows(x_NY)
    y_NX: Tensor = F.scaled_mm(
        rows_NY,
        values_XY.t(),
        scale_NZ.t().contiguous().t(),  # column by column, as the product reads the scales of rows
        F.ScalingType.BlockWise1x128,
        scale_AQ.float().contiguous().t(),
        F.ScalingType.BlockWise128x128,
        output_dtype=x_NY.dtype,
    )
    return y_NX
