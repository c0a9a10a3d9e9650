"""Quantized pages: 8 bits, or 6 on average (V2 §3.2.3), in the row layout of ``plan/cache_rows.py``.

X elements of a token, Y bytes of its row, Z groups of J elements, O codes of a segment.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fathom import kernels
from fathom.model.cache.lazy_zeros import lazy_zeros
from fathom.model.cache.pages import Scratch
from fathom.plan.cache_rows import EIGHT_BITS, PAIRED_MAX_CODE, SCALE_BYTES, QuantizedRow, Segment

_LEVELS = 2 * PAIRED_MAX_CODE + 1
# Types of twice so many bytes.
_PAIR_TYPES = {2: torch.int32, 4: torch.int64, 8: torch.complex128}
# A group of zeros still needs a scale; magnitudes below this are lost.
_LEAST = 1e-30


class QuantizedPages:
    """Values as integer codes times the scale of their group; the error is at most half a scale.

    A token's bytes depend on its own values only. Slots that were never written read as zeros.
    """

    def __init__(
        self, pages: int, page_size: int, row: QuantizedRow, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.rows_NY = lazy_zeros((pages * page_size, row.nbytes), device=device, dtype=torch.uint8)
        self._page_size, self.row = page_size, row
        self._table = _pair_table(device, dtype)

    @property
    def nbytes(self) -> int:
        """Bytes allocated; the operating system commits them when they are first written."""
        return self.rows_NY.nbytes

    def write(self, slots_N: Tensor, rows_NX: Tensor) -> None:
        """Quantize rows into their slots."""
        scales, codes = [], []
        widths = [segment.width for segment in self.row.segments]
        for segment, part_NX in zip(self.row.segments, rows_NX.float().split_with_sizes(widths, 1), strict=True):
            scales_NZ, codes_NY = _quantize(part_NX, segment)
            scales.append(scales_NZ.view(torch.uint8))
            codes.append(codes_NY)
        bytes_NY = torch.cat([*scales, *codes], 1)
        missing = self.row.nbytes - bytes_NY.shape[1]
        if missing:
            bytes_NY = torch.nn.functional.pad(bytes_NY, (0, missing))
        self.rows_NY.index_copy_(0, slots_N, bytes_NY)

    def read(self, pages: slice | Tensor, scratch: Scratch) -> Tensor:
        """Return the values of whole pages in the model's dtype, in ``scratch``."""
        size, row = self._page_size, self.row
        if isinstance(pages, slice):
            bytes_NY = self.rows_NY[pages.start * size : pages.stop * size]
        else:
            bytes_NY = self.rows_NY.view(-1, size * row.nbytes).index_select(0, pages).view(-1, row.nbytes)
        rows_NX = scratch.take((bytes_NY.shape[0], row.width), self._table)
        at = row.scales * SCALE_BYTES
        scales_NZ = bytes_NY[:, :at].view(torch.bfloat16).to(torch.promote_types(torch.bfloat16, rows_NX.dtype))
        first = group = 0
        for segment in row.segments:
            codes_NY = bytes_NY.narrow(1, at, segment.code_bytes)
            values_NX = codes_NY.view(torch.int8) if segment.largest == EIGHT_BITS else self._pairs(codes_NY)
            part_NX = rows_NX.narrow(1, first, segment.width).copy_(values_NX[:, : segment.width])
            scale_NZ = scales_NZ.narrow(1, group, segment.scales)
            part_NX.view(-1, segment.scales, segment.group).mul_(scale_NZ.unsqueeze(2))
            at, first, group = at + segment.code_bytes, first + segment.width, group + segment.scales
        return rows_NX

    def clear(self, pages_N: Tensor) -> None:
        """Overwrite pages with zeros."""
        self.rows_NY.view(-1, self._page_size, self.row.nbytes)[pages_N] = 0

    def _pairs(self, codes_NY: Tensor) -> Tensor:
        """Look up pairs of values, each pair as one element."""
        indices_NO = kernels.unpack_11(codes_NY)
        table = self._table.view(_PAIR_TYPES[self._table.element_size()]).view(-1)
        found = table.index_select(0, indices_NO.view(-1))
        return found.view(self._table.dtype).view(len(indices_NO), -1)


def _quantize(part_NX: Tensor, segment: Segment) -> tuple[Tensor, Tensor]:
    """Return a segment's scales, bfloat16 (N, Z), and its codes as bytes.

    Scales are rounded up, so that no code exceeds the largest.
    """
    part_NZJ = part_NX.reshape(-1, segment.scales, segment.group)
    scales_NZ = torch.linalg.vector_norm(part_NZJ, float("inf"), dim=2).clamp_min_(_LEAST).div_(segment.largest)
    scales_NZ.view(torch.int32).add_(0xFFFF).bitwise_and_(-0x10000)
    codes_NX = (part_NZJ / scales_NZ.unsqueeze(2)).round_().flatten(1)
    scales_NZ = scales_NZ.to(torch.bfloat16)
    if segment.largest == EIGHT_BITS:
        return scales_NZ, codes_NX.to(torch.int8).view(torch.uint8)
    codes_NX = torch.nn.functional.pad(codes_NX, (0, segment.width % 2))
    pairs_NO = torch.add(codes_NX[:, 1::2], codes_NX[:, 0::2], alpha=_LEVELS)
    return scales_NZ, kernels.pack_11(pairs_NO.to(torch.int32))


def _pair_table(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return both values of each pair, (2048, 2), indexed by the low 11 bits of 45 x first + second."""
    table = torch.zeros(2048, 2, dtype=dtype)
    values = torch.arange(-PAIRED_MAX_CODE, PAIRED_MAX_CODE + 1)
    first, second = values.repeat_interleave(_LEVELS), values.repeat(_LEVELS)
    table[(_LEVELS * first + second) % 2048] = torch.stack((first, second), 1).to(dtype)
    return table.to(device)
