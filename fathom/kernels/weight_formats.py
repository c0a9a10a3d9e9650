"""Weight formats in 8 and 4 bits: quantization and dequantization.

int8 has one scale a row: w = scale q. int4 has a scale and a zero point for every group of columns: w = scale (q - 8) +
zero. Scales and zero points are bfloat16, as PyTorch's fused CPU kernels read them, and are rounded before the values
are, so that a weight is off by at most half its scale.

X outputs, padded to A in int4, Y inputs, Z groups of a row, J columns of a group or rows of a block, Q blocks, O bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.errors import SpecError
from fathom.kernels.native.matrix import PANEL_ROWS, PackedExperts, PackedMatrix

QuantFormat = Literal["int8", "int4"]
QUANT_FORMATS: tuple[QuantFormat, ...] = ("int8", "int4")
GROUP_SIZES = (32, 64, 128)
"""Columns that may share a scale in int4."""

_INT8_COLUMNS = 16  # PyTorch's int8 kernel reads whole vectors: with other widths it reads past the row's end
_INT4_ROWS = 64  # the widest block of its int4 kernel; rows are padded to whole blocks
_SLACK = 1 + 2**-7  # more than what rounding a scale to bfloat16 can take from it


@dataclass(frozen=True, slots=True)
class Int4Layout:
    """How two rows share a byte: blocks of ``width`` rows, each block column by column.

    With ``halves`` the low nibble of byte i is row i of the block and the high nibble row i + width / 2; otherwise they
    are rows 2 i and 2 i + 1.
    """

    width: int
    halves: bool

    def pack(self, q_AY: Tensor) -> Tensor:
        """Pack values 0 to 15 (uint8) into bytes, (A, Y / 2)."""
        rows, columns = q_AY.shape
        q_QYJ = q_AY.view(-1, self.width, columns).transpose(1, 2)
        low, high = q_QYJ.chunk(2, -1) if self.halves else (q_QYJ[..., 0::2], q_QYJ[..., 1::2])
        return (low | (high << 4)).contiguous().view(rows, columns // 2)

    def unpack(self, values_AO: Tensor) -> Tensor:
        """Return the values, uint8 and transposed: (Y, A)."""
        rows, columns = values_AO.shape[0], values_AO.shape[1] * 2
        bytes_QYO = values_AO.view(-1, columns, self.width // 2)
        pair = (bytes_QYO & 15, bytes_QYO >> 4)
        q_QYJ = torch.cat(pair, -1) if self.halves else torch.stack(pair, -1).flatten(-2)
        return q_QYJ.transpose(0, 1).reshape(columns, rows)


LAYOUTS = (Int4Layout(64, True), Int4Layout(32, True), Int4Layout(32, False))
"""Those that PyTorch's int4 kernel reads, depending on the processor."""


@cache
def cpu_layout() -> Int4Layout | None:
    """Return the layout that the int4 kernel reads on this processor, found by packing a sample, or None."""
    q_AY = torch.arange(128 * 64, dtype=torch.int32).mul_(7).div_(3, rounding_mode="floor").remainder_(16).view(128, 64)
    sample = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q_AY, 1)
    return next((layout for layout in LAYOUTS if torch.equal(layout.pack(q_AY.to(torch.uint8)), sample)), None)


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """One quantized matrix of ``rows`` outputs and ``columns`` inputs.

    int8: ``values`` (X, Y) int8, ``scales`` (X,). int4: ``values`` (A, Y / 2) uint8 in ``layout`` and ``scales``
    (Z, A, 2), scale then zero point, A being X in whole blocks of 64. ``group_size`` is the columns of one scale.
    """

    format: QuantFormat
    rows: int
    columns: int
    group_size: int
    values: Tensor
    scales: Tensor
    layout: Int4Layout | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the values and their scales."""
        return self.values.nbytes + self.scales.nbytes

    def map(self, change: Callable[[Tensor], Tensor]) -> QuantizedWeight:
        """Return the same matrix with ``change`` applied to its tensors, to move it to another device."""
        return replace(self, values=change(self.values), scales=change(self.scales))


WeightMatrix: TypeAlias = QuantizedWeight | PackedMatrix
"""A matrix in PyTorch's formats, or in the native library's."""


@dataclass(frozen=True, slots=True)
class QuantizedExpertWeights:
    """Stacked matrices, (E, ...); ``experts`` are views of one expert's each."""

    values: Tensor
    scales: Tensor
    experts: Sequence[QuantizedWeight]

    @property
    def nbytes(self) -> int:
        """Bytes of the values and their scales."""
        return self.values.nbytes + self.scales.nbytes

    def map(self, change: Callable[[Tensor], Tensor]) -> QuantizedExpertWeights:
        """Return the same matrices with ``change`` applied to their tensors."""
        return _stacked(self.experts[0], change(self.values), change(self.scales))

    def __len__(self) -> int:
        """How many experts there are."""
        return len(self.experts)

    def __getitem__(self, expert: int) -> QuantizedWeight:
        """Return the matrix of one expert."""
        return self.experts[expert]


ExpertStack: TypeAlias = QuantizedExpertWeights | PackedExperts
"""One matrix of every expert, in PyTorch's formats or in the native library's."""


def unsupported_reason(rows: int, columns: int, format: QuantFormat, group_size: int) -> str | None:
    """Say why a matrix of (rows, columns) cannot be quantized, or return None."""
    divisor = group_size if format == "int4" else _INT8_COLUMNS
    if columns % divisor or not rows or not columns:
        return f"its {columns} columns are not a multiple of {divisor}"
    return None


def best_group_size(columns: int, group_size: int) -> int:
    """Return the largest group up to ``group_size`` that divides a width; ``group_size`` itself where none does."""
    return next(
        (size for size in sorted(GROUP_SIZES, reverse=True) if size <= group_size and columns % size == 0), group_size
    )


def quantize_weight(weight_XY: Tensor, format: QuantFormat, group_size: int = 32) -> QuantizedWeight:
    """Quantize a matrix; ``group_size`` is for int4 only.

    Raises:
        SpecError: an unknown format or group size, a width that cannot be quantized, or weights that are not finite.
    """
    return quantize_int4(weight_XY, group_size) if format == "int4" else quantize_int8(weight_XY)


def quantize_int8(weight_XY: Tensor) -> QuantizedWeight:
    """Quantize to 8 bits with one scale a row, the largest magnitude over 127; raises as ``quantize_weight`` does."""
    rows, columns = _checked(weight_XY, "int8", 0)
    wide_XY = weight_XY.detach().float()
    scale_X = (wide_XY.abs().amax(1) / 127).clamp_min_(torch.finfo(torch.bfloat16).tiny).to(torch.bfloat16)
    _check_finite(scale_X)
    values_XY = (wide_XY / scale_X.float().unsqueeze(1)).round_().clamp_(-127, 127).to(torch.int8)
    return QuantizedWeight("int8", rows, columns, columns, values_XY, scale_X)


def quantize_int4(weight_XY: Tensor, group_size: int = 32) -> QuantizedWeight:
    """Quantize to 4 bits: groups of ``group_size`` columns span 16 values from smallest to largest.

    Raises as ``quantize_weight`` does.

    A group that has 16 equally spaced values, as files of Q4_1 do, keeps them to the rounding of scale and zero point.
    """
    if group_size not in GROUP_SIZES:
        raise SpecError("group_size", f"{group_size} is no group of int4", f"use one of {GROUP_SIZES}")
    rows, columns = _checked(weight_XY, "int4", group_size)
    wide_AY = F.pad(weight_XY.detach().float(), (0, 0, 0, -rows % _INT4_ROWS))
    wide_AZJ = wide_AY.view(wide_AY.shape[0], -1, group_size)
    low_AZ, high_AZ = wide_AZJ.aminmax(dim=-1)
    spread_AZ = (high_AZ - low_AZ) / 15
    zero_AZ = (low_AZ + 8 * spread_AZ).to(torch.bfloat16)
    wide_zero_AZ = zero_AZ.float()
    needed_AZ = torch.maximum((high_AZ - wide_zero_AZ) / 7.5, (wide_zero_AZ - low_AZ) / 8.5)
    scale_AZ = torch.maximum(spread_AZ, needed_AZ * _SLACK).clamp_min_(torch.finfo(torch.bfloat16).tiny)
    scales_ZA2 = torch.stack((scale_AZ.to(torch.bfloat16), zero_AZ), -1).transpose(0, 1).contiguous()
    _check_finite(scales_ZA2)
    scale_AZ1 = scale_AZ.to(torch.bfloat16).float().unsqueeze(-1)
    q_AZJ = ((wide_AZJ - wide_zero_AZ.unsqueeze(-1)) / scale_AZ1).round_().clamp_(-8, 7).add_(8)
    layout = (cpu_layout() if weight_XY.device.type == "cpu" else None) or LAYOUTS[0]
    values_AO = layout.pack(q_AZJ.to(torch.uint8).view(wide_AY.shape))
    return QuantizedWeight("int4", rows, columns, group_size, values_AO, scales_ZA2, layout)


def quantize_experts(weight_EXY: Tensor, format: QuantFormat, group_size: int = 32) -> QuantizedExpertWeights:
    """Quantize stacked matrices one by one, holding one expert in float32; raises as ``quantize_weight`` does."""
    first = quantize_weight(weight_EXY[0], format, group_size)
    values, scales = (x.new_empty(len(weight_EXY), *x.shape) for x in (first.values, first.scales))
    for index, weight_XY in enumerate(weight_EXY):
        qweight = first if index == 0 else quantize_weight(weight_XY, format, group_size)
        values[index], scales[index] = qweight.values, qweight.scales
    return _stacked(first, values, scales)


def row_tiles(qweight: WeightMatrix, weights: int) -> Iterator[slice]:
    """Cut the rows into slices of at most ``weights`` weights, or of one block where that is more."""
    if isinstance(qweight, PackedMatrix):
        width = PANEL_ROWS
    else:
        width = 1 if qweight.layout is None else qweight.layout.width
    height = max(1, weights // (qweight.columns * width)) * width
    for start in range(0, qweight.rows, height):
        yield slice(start, min(start + height, qweight.rows))


def dequantize(qweight: WeightMatrix, dtype: torch.dtype = torch.float32, rows: slice | None = None) -> Tensor:
    """Return the weights, or the rows of one of ``row_tiles``, in ``dtype``; int4 is computed in float32 at least.

    The result is (rows, Y); for int4 a transposed view, its columns being whole blocks.
    """
    if isinstance(qweight, PackedMatrix):
        return qweight.unpack(rows).to(dtype)
    start, stop = (0, qweight.rows) if rows is None else (rows.start, rows.stop)
    wide = torch.promote_types(dtype, torch.float32)
    if qweight.layout is None:
        return qweight.values[start:stop].to(wide).mul_(qweight.scales[start:stop].to(wide).unsqueeze(1)).to(dtype)
    end = -(-stop // qweight.layout.width) * qweight.layout.width
    scale_Z1A, zero_Z1A = (x.to(wide).contiguous().unsqueeze(1) for x in qweight.scales[:, start:end].unbind(-1))
    w_ZJA = qweight.layout.unpack(qweight.values[start:end]).to(wide).view(len(scale_Z1A), qweight.group_size, -1)
    torch.addcmul(zero_Z1A - 8 * scale_Z1A, w_ZJA, scale_Z1A, out=w_ZJA)
    return w_ZJA.flatten(0, 1)[:, : stop - start].t().to(dtype)


def _checked(weight_XY: Tensor, format: QuantFormat, group_size: int) -> tuple[int, int]:
    if weight_XY.dim() != 2:
        raise SpecError("weight", f"has {weight_XY.dim()} dimensions", "quantize matrices only")
    rows, columns = weight_XY.shape
    problem = unsupported_reason(rows, columns, format, group_size)
    if problem is not None:
        raise SpecError("weight", problem, "leave this matrix plain")
    return rows, columns


def _check_finite(scales: Tensor) -> None:
    if not bool(scales.isfinite().all()):
        raise SpecError("weight", "has numbers that are not finite", "check the checkpoint it came from")


def _stacked(like: QuantizedWeight, values: Tensor, scales: Tensor) -> QuantizedExpertWeights:
    pairs = zip(values.unbind(0), scales.unbind(0), strict=True)
    return QuantizedExpertWeights(values, scales, tuple(replace(like, values=v, scales=s) for v, s in pairs))
