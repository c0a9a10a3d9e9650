"""Products with FP8 weights: E4M3 in blocks of 128 by 128, as DeepSeek-V3 is released and served (V3 §3.3).

M rows, N outputs, K inputs, L = K / 128 groups of inputs, P and Q blocks down and across.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.kernels import reference

_BLOCK = 128
_LARGEST = torch.finfo(torch.float8_e4m3fn).max
_HOPPER = (9, 0)


def fp8_block_linear(x_MK: Tensor, values_NK: Tensor, scale_PQ: Tensor) -> Tensor:
    """Return x w^T, (M, N) like ``x``; ``scale_PQ`` (float32) multiplies each block of ``values_NK`` (E4M3).

    Hopper multiplies in FP8, with ``x`` quantized on the fly by a scale for every 128 inputs of every row, so that a
    row's result depends on no other. Elsewhere, and where K is no multiple of 512 or N none of 128, the weights are
    dequantized as a whole. The Hopper path follows PyTorch's documentation and has not run on such a GPU yet.
    """
    rows, columns = values_NK.shape
    fits = x_MK.dtype == torch.bfloat16 and columns % (4 * _BLOCK) == 0 and rows % _BLOCK == 0
    if fits and has_fp8_blocks(x_MK.device):
        return _scaled(x_MK, values_NK, scale_PQ)
    return reference.fp8_block_linear(x_MK, values_NK, scale_PQ)


def has_fp8_blocks(device: torch.device) -> bool:
    """Whether this device multiplies FP8 with scales by block: compute capability 9.0."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == _HOPPER


def quantize_rows(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Round to E4M3 with a multiplier for every 128 inputs of every row: (M, K) and float32 (M, L)."""
    x_ML128 = x_MK.float().reshape(len(x_MK), -1, _BLOCK)
    scale_ML = (x_ML128.abs().amax(-1) / _LARGEST).clamp_min_(torch.finfo(torch.float32).tiny)
    values_ML128 = (x_ML128 / scale_ML.unsqueeze(-1)).to(torch.float8_e4m3fn)
    return values_ML128.flatten(1), scale_ML


def _scaled(x_MK: Tensor, values_NK: Tensor, scale_PQ: Tensor) -> Tensor:
    rows_MK, scale_ML = quantize_rows(x_MK)
    y_MN: Tensor = F.scaled_mm(
        rows_MK,
        values_NK.t(),
        scale_ML.t().contiguous().t(),  # column by column, as the product reads the scales of rows
        F.ScalingType.BlockWise1x128,
        scale_PQ.float().contiguous().t(),
        F.ScalingType.BlockWise128x128,
        output_dtype=x_MK.dtype,
    )
    return y_MN
