"""Products with int8 and int4 weights: PyTorch's fused CPU kernels for few rows, dequantized tiles for many.

The fused kernels read activations in bfloat16 and return bfloat16, which is converted to ``x``'s dtype; they accumulate
in float32. Their cost grows with every row, so beyond a measured number of rows it is cheaper to dequantize the
weights, a tile at a time, and multiply as usual.

X outputs, padded to A in int4, Z of them in a tile, Y inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.errors import SpecError
from fathom.kernels.native.matrix import PackedMatrix
from fathom.kernels.packed_products import packed_linear
from fathom.kernels.products import product, product_choice
from fathom.kernels.tensors import needs_grad
from fathom.kernels.weight_formats import QuantizedWeight, WeightMatrix, cpu_layout, dequantize, row_tiles

_TILE_WEIGHTS = 2**19
"""Weights dequantized at once: 2 MB in float32."""
_HALF = torch.bfloat16


def quantized_linear(x: Tensor, qweight: WeightMatrix, *, round_activations: bool = True) -> Tensor:
    """Return x w^T, (..., Y) to (..., X), like ``x`` in dtype, without gradient.

    Packed weights are multiplied by the native library: see ``packed_linear``, which has ``round_activations`` too.
    Others run in PyTorch. There up to 16 to 64 rows on a CPU run through the fused kernel, where a row's result does
    not depend on the others but activations and results are rounded to bfloat16. More rows, other dtypes and other
    devices multiply dequantized tiles in ``x``'s dtype; on a CPU float32 and bfloat16 are both multiplied in bfloat16
    where its products were measured to be fast (``product_choice``), else in float32.

    Raises:
        SpecError: ``x`` requires a gradient.
    """
    if needs_grad(x):
        raise SpecError("weights", f"{qweight.format} weights pass no gradient", "open the model with plain weights")
    if isinstance(qweight, PackedMatrix):
        return packed_linear(x, qweight, round_activations=round_activations)
    x_NY = x.reshape(-1, qweight.columns)
    if uses_fused_kernel(x_NY, qweight):
        y_NX = fused_matmul(x_NY.to(_HALF), qweight).to(x.dtype)
    else:
        y_NX = dequantized_matmul(x_NY, qweight)
    return y_NX.view(*x.shape[:-1], qweight.rows)


def uses_fused_kernel(x_NY: Tensor, qweight: QuantizedWeight) -> bool:
    """Whether ``fused_matmul`` supports these rows and is faster than ``dequantized_matmul``."""
    if x_NY.device.type != "cpu" or x_NY.dtype not in (torch.float32, _HALF):
        return False
    return 0 < x_NY.shape[0] <= max_fused_rows(qweight) and (qweight.layout is None or qweight.layout == cpu_layout())


def max_fused_rows(qweight: QuantizedWeight) -> int:
    """Rows up to which the fused kernel is the faster one, measured with one thread."""
    if qweight.layout is not None:
        return 64
    return 16 if product_choice().bfloat16 else 32


def fused_matmul(x_NY: Tensor, qweight: QuantizedWeight) -> Tensor:
    """Multiply bfloat16 rows with the fused kernel, bfloat16 (N, X): one operator, one more where X was padded."""
    if qweight.layout is None:
        return torch._weight_int8pack_mm(x_NY, qweight.values, qweight.scales)
    y_NA = torch._weight_int4pack_mm_for_cpu(x_NY, qweight.values, qweight.group_size, qweight.scales)
    return y_NA if y_NA.shape[1] == qweight.rows else y_NA[:, : qweight.rows]


def dequantized_matmul(x_NY: Tensor, qweight: QuantizedWeight) -> Tensor:
    """Multiply by dequantized weights, (N, X) like ``x``; beside the result it holds one tile of the weights."""
    y_NX = x_NY.new_empty(x_NY.shape[0], qweight.rows)
    compute = x_NY.dtype
    if x_NY.device.type == "cpu" and compute in (torch.float32, _HALF):
        compute = _HALF if product_choice().bfloat16 else torch.float32
    rows_NY = x_NY.to(compute)
    # int8 values are exact in bfloat16 and wider: there the scales multiply the results. Sums could overflow float16.
    scale_results = qweight.layout is None and compute != torch.float16
    for tile in row_tiles(qweight, _TILE_WEIGHTS):
        weight_ZY = qweight.values[tile].to(compute) if scale_results else dequantize(qweight, compute, tile)
        y_NX[:, tile] = product(rows_NY, weight_ZY.t())
    return y_NX.mul_(qweight.scales) if scale_results else y_NX
