"""ggml's block formats, to float32 and back: blocks of 32 or 256 elements that share a scale.

Each block is a row of bytes here, and its parts are columns. Dequantizing rounds just as ggml does, operation by
operation, so the results equal the gguf library's to the bit; so does quantizing.

X blocks, Y elements and Z bytes of one, J bytes of a part, Q values of a byte, A rows and O columns of a tensor;
numbers are the columns of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fathom.errors import CheckpointError

QuantType = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0"]
FLOATS: Mapping[str, torch.dtype] = MappingProxyType(
    {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
)
"""The unquantized types."""
_FLOAT_NUMBERS = {"F32": 0, "F16": 1, "BF16": 30}
_SMALL, _LARGE = 32, 256
_CHUNK_ELEMENTS = 2**15  # in the cache, and too small for torch to share out among threads that may be busy


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """A block format: its number, elements and bytes of a block, and a function from bytes (X, Z) to values (X, Y)."""

    number: int  # in ggml
    elements: int
    nbytes: int
    unpack: Callable[[Tensor, Tensor], None]


def dequantize(raw: Tensor | bytes, kind: str, shape: Sequence[int]) -> Tensor:
    """Return the numbers of a tensor's bytes as float32; F16 and BF16 are widened.

    Raises:
        CheckpointError: the kind is not known, or the bytes are not as many as the shape takes.
    """
    if isinstance(raw, bytes):
        raw = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    flat = raw.reshape(-1).view(torch.uint8)
    width = FLOATS[kind].itemsize if kind in FLOATS else _block(kind).nbytes
    elements = 1 if kind in FLOATS else _block(kind).elements
    out = torch.empty(tuple(shape), dtype=torch.float32)
    if out.numel() * width != flat.numel() * elements:
        raise CheckpointError(f"{kind}: {flat.numel()} bytes are not a tensor {tuple(shape)}; check the shape")
    if kind in FLOATS:
        return out.copy_(flat.view(FLOATS[kind]).view(out.shape))
    dequantize_into(flat, kind, out.view(-1, elements))
    return out


def dequantize_into(raw: Tensor, kind: str, out_XY: Tensor) -> None:
    """Write the numbers of whole blocks into ``out_XY``, float32 with one row for each block.

    Rows go in chunks that stay in the processor's cache, so beside ``out_XY`` less than a megabyte is used.
    """
    block = _block(kind)
    raw_XZ = raw.view(-1, block.nbytes)
    step = _CHUNK_ELEMENTS // block.elements
    for start in range(0, len(raw_XZ), step):
        block.unpack(raw_XZ[start : start + step], out_XY[start : start + step])


def quantize(tensor_AO: Tensor, kind: QuantType) -> npt.NDArray[np.uint8]:
    """Return the bytes of a tensor, row by row: (A, bytes of a row).

    Raises:
        CheckpointError: rows are not whole blocks, or a number is not finite or beyond the scale's float16.
    """
    if kind in FLOATS:
        cast = tensor_AO.to(FLOATS[kind]).contiguous().view(torch.uint8)
        return np.asarray(cast.numpy(), dtype=np.uint8)
    block, pack = _block(kind), _PACK[kind]
    if tensor_AO.shape[-1] % block.elements:
        raise CheckpointError(
            f"{kind}: rows of {tensor_AO.shape[-1]} are not whole blocks of {block.elements}; store them as F16"
        )
    numbers_XY = tensor_AO.detach().reshape(-1, block.elements)
    packed_XZ = torch.empty(len(numbers_XY), block.nbytes, dtype=torch.uint8)
    step = _CHUNK_ELEMENTS // block.elements
    for start in range(0, len(numbers_XY), step):
        pack(numbers_XY[start : start + step].float(), packed_XZ[start : start + step])
    return np.asarray(packed_XZ.view(*tensor_AO.shape[:-1], -1).numpy(), dtype=np.uint8)


def _block(kind: str) -> BlockFormat:
    if kind not in BLOCK_FORMATS:
        raise CheckpointError(f"{kind}: not a block format Fathom knows; use one of {', '.join(BLOCK_FORMATS)}")
    return BLOCK_FORMATS[kind]


def _half(raw_XZ: Tensor, start: int) -> Tensor:
    """Return the float16 at byte ``start`` of each block as float32, (X, 1)."""
    return raw_XZ[:, start : start + 2].contiguous().view(torch.float16).float()


def _nibbles(raw_XZ: Tensor, out_XY: Tensor) -> None:
    """Write the low halves of 16 bytes, then their high halves."""
    out_XY[:, :16].copy_(raw_XZ & 15)
    out_XY[:, 16:].copy_(raw_XZ >> 4)


def _q8_0(raw_XZ: Tensor, out_XY: Tensor) -> None:
    out_XY.copy_(raw_XZ[:, 2:].view(torch.int8))
    out_XY.mul_(_half(raw_XZ, 0))


def _q4_0(raw_XZ: Tensor, out_XY: Tensor) -> None:
    _nibbles(raw_XZ[:, 2:], out_XY)
    out_XY.sub_(8).mul_(_half(raw_XZ, 0))


def _q4_1(raw_XZ: Tensor, out_XY: Tensor) -> None:
    _nibbles(raw_XZ[:, 4:], out_XY)
    out_XY.mul_(_half(raw_XZ, 0)).add_(_half(raw_XZ, 2))


def _fifth_bits(raw_XZ: Tensor, start: int) -> Tensor:
    """Return 16 for each of the 32 bits from byte ``start`` on that is set, lowest bit first."""
    bits_8 = torch.arange(8, dtype=torch.uint8)
    high_X48 = (raw_XZ[:, start : start + 4, None] >> bits_8) & 1
    return (high_X48 << 4).flatten(1)


def _q5(raw_XZ: Tensor, out_XY: Tensor, high: int) -> None:
    low_XZ, high_XY = raw_XZ[:, high + 4 :], _fifth_bits(raw_XZ, high)
    out_XY[:, :16].copy_((low_XZ & 15) | high_XY[:, :16])
    out_XY[:, 16:].copy_((low_XZ >> 4) | high_XY[:, 16:])


def _q5_0(raw_XZ: Tensor, out_XY: Tensor) -> None:
    _q5(raw_XZ, out_XY, 2)
    out_XY.sub_(16).mul_(_half(raw_XZ, 0))


def _q5_1(raw_XZ: Tensor, out_XY: Tensor) -> None:
    _q5(raw_XZ, out_XY, 4)
    out_XY.mul_(_half(raw_XZ, 0)).add_(_half(raw_XZ, 2))


def _spread(raw_XZ: Tensor, shifts: Sequence[int], group: int, mask: int) -> Tensor:
    """Return, for each run of ``group`` bytes, the bits at each shift in turn: (X, bytes x shifts)."""
    by_Q1 = torch.tensor(shifts, dtype=torch.uint8)[:, None]
    return ((raw_XZ.view(len(raw_XZ), -1, 1, group) >> by_Q1) & mask).flatten(1)


def _q2_k(raw_XZ: Tensor, out_XY: Tensor) -> None:
    scales_X16 = raw_XZ[:, :16]
    out = out_XY.view(-1, 16, 16)
    out.copy_(_spread(raw_XZ[:, 16:80], (0, 2, 4, 6), 32, 3).view(out.shape))
    out.mul_((_half(raw_XZ, 80) * (scales_X16 & 15))[..., None])
    out.sub_((_half(raw_XZ, 82) * (scales_X16 >> 4))[..., None])


def _q3_k(raw_XZ: Tensor, out_XY: Tensor) -> None:
    low_X16 = _spread(raw_XZ[:, 96:104], (0, 4), 8, 15)
    high_X16 = _spread(raw_XZ[:, 104:108], (0, 2, 4, 6), 4, 3)
    scales_X16 = (low_X16 | (high_X16 << 4)).to(torch.int8) - 32
    low = _spread(raw_XZ[:, 32:96], (0, 2, 4, 6), 32, 3).to(torch.int8)
    absent = _spread(raw_XZ[:, :32], range(8), 32, 1) ^ 1
    out = out_XY.view(-1, 16, 16)
    out.copy_((low - (absent << 2).to(torch.int8)).view(out.shape))
    out.mul_((_half(raw_XZ, 108) * scales_X16)[..., None])


def _scales_k(raw_XZ: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scales and minima of the eight parts of a Q4_K or Q5_K block, each (X, 8, 1), scaled."""
    first_X4, second_X4, mixed_X4 = raw_XZ[:, 4:8], raw_XZ[:, 8:12], raw_XZ[:, 12:16]
    scales_X8 = torch.cat([first_X4 & 63, (mixed_X4 & 15) | ((first_X4 >> 2) & 48)], dim=1)
    minima_X8 = torch.cat([second_X4 & 63, (mixed_X4 >> 4) | ((second_X4 >> 2) & 48)], dim=1)
    return (_half(raw_XZ, 0) * scales_X8)[..., None], (_half(raw_XZ, 2) * minima_X8)[..., None]


def _q4_k(raw_XZ: Tensor, out_XY: Tensor) -> None:
    scales, minima = _scales_k(raw_XZ)
    out = out_XY.view(-1, 8, 32)
    pairs_X4J = raw_XZ[:, 16:].view(-1, 4, 32)
    out[:, 0::2].copy_(pairs_X4J & 15)
    out[:, 1::2].copy_(pairs_X4J >> 4)
    out.mul_(scales).sub_(minima)


def _q5_k(raw_XZ: Tensor, out_XY: Tensor) -> None:
    scales, minima = _scales_k(raw_XZ)
    low = _spread(raw_XZ[:, 48:], (0, 4), 32, 15)
    high = _spread(raw_XZ[:, 16:48], range(8), 32, 1) << 4
    out = out_XY.view(-1, 8, 32)
    out.copy_((low | high).view(out.shape))
    out.mul_(scales).sub_(minima)


def _q6_k(raw_XZ: Tensor, out_XY: Tensor) -> None:
    low = _spread(raw_XZ[:, :128], (0, 4), 64, 15)
    high = _spread(raw_XZ[:, 128:192], (0, 2, 4, 6), 32, 3) << 4
    out = out_XY.view(-1, 16, 16)
    out.copy_((low | high).view(out.shape))
    scales_X16 = raw_XZ[:, 192:208].view(torch.int8)
    out.sub_(32).mul_((_half(raw_XZ, 208) * scales_X16)[..., None])


def _scale_bytes(scale_X1: Tensor, kind: str) -> Tensor:
    half_X1 = scale_X1.to(torch.float16)
    if not bool(half_X1.isfinite().all()):
        raise CheckpointError(f"{kind}: the tensor holds numbers too large or not finite; store it as F32")
    return half_X1.view(torch.uint8)


def _inverse(scale_X1: Tensor) -> Tensor:
    return torch.where(scale_X1 == 0, scale_X1, 1 / scale_X1)


def _pack_q8_0(numbers_XY: Tensor, packed_XZ: Tensor) -> None:
    scale_X1 = numbers_XY.abs().amax(dim=1, keepdim=True) / 127
    packed_XZ[:, :2] = _scale_bytes(scale_X1, "Q8_0")
    scaled_XY = numbers_XY * _inverse(scale_X1)
    size_XY = scaled_XY.abs()
    whole_XY = size_XY.floor()
    rounded_XY = whole_XY + ((size_XY - whole_XY) * 2).floor_()  # halves go away from zero
    packed_XZ[:, 2:] = rounded_XY.copysign_(scaled_XY).to(torch.int8).view(torch.uint8)


def _pack_q4_0(numbers_XY: Tensor, packed_XZ: Tensor) -> None:
    farthest_X1 = numbers_XY.abs().argmax(dim=1, keepdim=True)
    scale_X1 = numbers_XY.gather(1, farthest_X1) / -8
    packed_XZ[:, :2] = _scale_bytes(scale_X1, "Q4_0")
    codes_XY = (numbers_XY * _inverse(scale_X1)).add_(8.5).clamp_(0, 15).to(torch.uint8)
    packed_XZ[:, 2:] = codes_XY[:, :16] | (codes_XY[:, 16:] << 4)


_PACK: Mapping[str, Callable[[Tensor, Tensor], None]] = MappingProxyType({"Q8_0": _pack_q8_0, "Q4_0": _pack_q4_0})
BLOCK_FORMATS: Mapping[str, BlockFormat] = MappingProxyType(
    {
        "Q8_0": BlockFormat(8, _SMALL, 34, _q8_0),
        "Q4_0": BlockFormat(2, _SMALL, 18, _q4_0),
        "Q4_1": BlockFormat(3, _SMALL, 20, _q4_1),
        "Q5_0": BlockFormat(6, _SMALL, 22, _q5_0),
        "Q5_1": BlockFormat(7, _SMALL, 24, _q5_1),
        "Q2_K": BlockFormat(10, _LARGE, 84, _q2_k),
        "Q3_K": BlockFormat(11, _LARGE, 110, _q3_k),
        "Q4_K": BlockFormat(12, _LARGE, 144, _q4_k),
        "Q5_K": BlockFormat(13, _LARGE, 176, _q5_k),
        "Q6_K": BlockFormat(14, _LARGE, 210, _q6_k),
    }
)
"""The block formats read, by ggml's names."""
TYPE_SIZES: Mapping[int, tuple[str, int, int]] = MappingProxyType(
    {_FLOAT_NUMBERS[name]: (name, 1, dtype.itemsize) for name, dtype in FLOATS.items()}
    | {block.number: (name, block.elements, block.nbytes) for name, block in BLOCK_FORMATS.items()}
)
"""All types read, by ggml's numbers: name, elements in a block, bytes of a block."""
