"""Products by packed matrices: PyTorch's packed CPU products for few rows, strips of plain weights for many.

The packed products read activations in bfloat16 and return bfloat16, which is rounded into ``x``'s dtype; sums are
float32 inside. They cost the same for every row, so beyond some rows (below, measured) it is cheaper to unpack the
weights, a strip at a time, and multiply as usual. A compiled extension will be chosen here as well.

N outputs, R of them in a strip, K inputs, M rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.errors import SpecError
from fathom.kernels.elementwise import needs_grad
from fathom.kernels.linear import compiles_inference
from fathom.kernels.weight_formats import QuantizedWeight, cpu_layout, dequantize, row_tiles

_STRIP_NUMBERS = 2**19
"""Weights unpacked at once: 2 MB in float32."""
_HALF = torch.bfloat16


def quantized_linear(x: Tensor, packed: QuantizedWeight) -> Tensor:
    """Return x w^T, (..., K) to (..., N), like ``x`` in dtype, without gradient.

    Up to 16 to 64 rows on a CPU run through the packed product, where a row's result does not depend on the others but
    activations and results are rounded to bfloat16. More rows, other dtypes and other devices multiply unpacked strips
    in ``x``'s dtype; a CPU that has units for bfloat16 multiplies float32 in bfloat16 there too.

    Raises:
        SpecError: ``x`` wants a gradient.
    """
    if needs_grad(x):
        raise SpecError("weights", f"{packed.format} weights pass no gradient", "open the model with plain weights")
    x_MK = x.reshape(-1, packed.columns)
    if compiles_inference() or uses_fused_kernel(x_MK, packed):
        y_MN = fused_matmul(x_MK.to(_HALF), packed).to(x.dtype)
    else:
        y_MN = dequantized_matmul(x_MK, packed)
    return y_MN.view(*x.shape[:-1], packed.rows)


def uses_fused_kernel(x_MK: Tensor, packed: QuantizedWeight) -> bool:
    """Whether ``fused_matmul`` computes these rows, and faster than ``dequantized_matmul``."""
    if x_MK.device.type != "cpu" or x_MK.dtype not in (torch.float32, _HALF):
        return False
    return 0 < x_MK.shape[0] <= most_rows(packed) and (packed.nibbles is None or packed.nibbles == cpu_layout())


def most_rows(packed: QuantizedWeight) -> int:
    """Rows up to which the packed product is the faster one, by measurement with one thread."""
    if packed.nibbles is not None:
        return 64
    return 16 if has_native_bfloat16() else 48


def has_native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; without, such products are many times slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def fused_matmul(x_MK: Tensor, packed: QuantizedWeight) -> Tensor:
    """Multiply bfloat16 rows by the packed product: one operator, one more where N was padded; bfloat16 (M, N)."""
    if packed.nibbles is None:
        return torch._weight_int8pack_mm(x_MK, packed.values, packed.scales)
    y_MX = torch._weight_int4pack_mm_for_cpu(x_MK, packed.values, packed.group_size, packed.scales)
    return y_MX if y_MX.shape[1] == packed.rows else y_MX[:, : packed.rows]


def dequantized_matmul(x_MK: Tensor, packed: QuantizedWeight) -> Tensor:
    """Multiply by unpacked weights, (M, N) like ``x``; beside the result it holds one strip of the weights."""
    y_MN = x_MK.new_empty(x_MK.shape[0], packed.rows)
    compute = x_MK.dtype
    if x_MK.device.type == "cpu" and compute in (torch.float32, _HALF):
        compute = _HALF if has_native_bfloat16() else torch.float32
    rows_MK = x_MK.to(compute)
    # int8 numbers are exact in bfloat16 and wider: there steps multiply the results. Sums could overflow float16.
    late = packed.nibbles is None and compute != torch.float16
    for strip in row_tiles(packed, _STRIP_NUMBERS):
        weight_RK = packed.values[strip].to(compute) if late else dequantize(packed, compute, strip)
        y_MN[:, strip] = torch.mm(rows_MK, weight_RK.t())
    return y_MN.mul_(packed.scales) if late else y_MN
