"""ggml's block formats, to float32 and back: blocks of 32 or 256 elements that share a scale.

Each block is a row of bytes here, and its parts are columns. Dequantizing rounds just as ggml does, operation by
operation, so the results equal the gguf library's to the bit; so does quantizing.

Dimensions: N blocks; numbers are the columns of a part.
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
_SMALL, _LARGE = 32, 256
_CHUNK_ELEMENTS = 2**15  # in the cache, and too small for torch to share out among threads that may be busy


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """A block format: elements and bytes of a block, and a function from bytes (N, nbytes) to values (N, elements)."""

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


def dequantize_into(raw: Tensor, kind: str, out_NE: Tensor) -> None:
    """Write the numbers of whole blocks into ``out_NE``, float32 with one row for each block.

    Rows go in chunks that stay in the processor's cache, so beside ``out_NE`` less than a megabyte is used.
    """
    block = _block(kind)
    raw_NB = raw.view(-1, block.nbytes)
    step = _CHUNK_ELEMENTS // block.elements
    for start in range(0, len(raw_NB), step):
        block.unpack(raw_NB[start : start + step], out_NE[start : start + step])


def quantize(tensor_RD: Tensor, kind: QuantType) -> npt.NDArray[np.uint8]:
    """Return the bytes of a tensor, row by row: (R, bytes of a row).

    Raises:
        CheckpointError: rows are not whole blocks, or a number is not finite or beyond the scale's float16.
    """
    if kind in FLOATS:
        cast = tensor_RD.to(FLOATS[kind]).contiguous().view(torch.uint8)
        return np.asarray(cast.numpy(), dtype=np.uint8)
    block, pack = _block(kind), _PACK[kind]
    if tensor_RD.shape[-1] % block.elements:
        raise CheckpointError(
            f"{kind}: rows of {tensor_RD.shape[-1]} are not whole blocks of {block.elements}; store them as F16"
        )
    numbers_NE = tensor_RD.detach().reshape(-1, block.elements)
    packed_NB = torch.empty(len(numbers_NE), block.nbytes, dtype=torch.uint8)
    step = _CHUNK_ELEMENTS // block.elements
    for start in range(0, len(numbers_NE), step):
        pack(numbers_NE[start : start + step].float(), packed_NB[start : start + step])
    return np.asarray(packed_NB.view(*tensor_RD.shape[:-1], -1).numpy(), dtype=np.uint8)


def _block(kind: str) -> BlockFormat:
    if kind not in BLOCK_FORMATS:
        raise CheckpointError(f"{kind}: not a block format Fathom knows; use one of {', '.join(BLOCK_FORMATS)}")
    return BLOCK_FORMATS[kind]


def _half(raw_NB: Tensor, start: int) -> Tensor:
    """Return the float16 at byte ``start`` of each block as float32, (N, 1)."""
    return raw_NB[:, start : start + 2].contiguous().view(torch.float16).float()


def _nibbles(raw_NB: Tensor, out_NE: Tensor) -> None:
    """Write the low halves of 16 bytes, then their high halves."""
    out_NE[:, :16].copy_(raw_NB & 15)
    out_NE[:, 16:].copy_(raw_NB >> 4)


def _q8_0(raw_NB: Tensor, out_NE: Tensor) -> None:
    out_NE.copy_(raw_NB[:, 2:].view(torch.int8))
    out_NE.mul_(_half(raw_NB, 0))


def _q4_0(raw_NB: Tensor, out_NE: Tensor) -> None:
    _nibbles(raw_NB[:, 2:], out_NE)
    out_NE.sub_(8).mul_(_half(raw_NB, 0))


def _q4_1(raw_NB: Tensor, out_NE: Tensor) -> None:
    _nibbles(raw_NB[:, 4:], out_NE)
    out_NE.mul_(_half(raw_NB, 0)).add_(_half(raw_NB, 2))


def _fifth_bits(raw_NB: Tensor, start: int) -> Tensor:
    """Return 16 for each of the 32 bits from byte ``start`` on that is set, lowest bit first."""
    bits_8 = torch.arange(8, dtype=torch.uint8)
    high_N48 = (raw_NB[:, start : start + 4, None] >> bits_8) & 1
    return (high_N48 << 4).flatten(1)


def _q5(raw_NB: Tensor, out_NE: Tensor, high: int) -> None:
    low_NB, high_NE = raw_NB[:, high + 4 :], _fifth_bits(raw_NB, high)
    out_NE[:, :16].copy_((low_NB & 15) | high_NE[:, :16])
    out_NE[:, 16:].copy_((low_NB >> 4) | high_NE[:, 16:])


def _q5_0(raw_NB: Tensor, out_NE: Tensor) -> None:
    _q5(raw_NB, out_NE, 2)
    out_NE.sub_(16).mul_(_half(raw_NB, 0))


def _q5_1(raw_NB: Tensor, out_NE: Tensor) -> None:
    _q5(raw_NB, out_NE, 4)
    out_NE.mul_(_half(raw_NB, 0)).add_(_half(raw_NB, 2))


def _spread(raw_NB: Tensor, shifts: Sequence[int], group: int, mask: int) -> Tensor:
    """Return, for each run of ``group`` bytes, the bits at each shift in turn: (N, bytes x shifts)."""
    by_S1 = torch.tensor(shifts, dtype=torch.uint8)[:, None]
    return ((raw_NB.view(len(raw_NB), -1, 1, group) >> by_S1) & mask).flatten(1)


def _q2_k(raw_NB: Tensor, out_NE: Tensor) -> None:
    scales_N16 = raw_NB[:, :16]
    out = out_NE.view(-1, 16, 16)
    out.copy_(_spread(raw_NB[:, 16:80], (0, 2, 4, 6), 32, 3).view(out.shape))
    out.mul_((_half(raw_NB, 80) * (scales_N16 & 15))[..., None])
    out.sub_((_half(raw_NB, 82) * (scales_N16 >> 4))[..., None])


def _q3_k(raw_NB: Tensor, out_NE: Tensor) -> None:
    low_N16 = _spread(raw_NB[:, 96:104], (0, 4), 8, 15)
    high_N16 = _spread(raw_NB[:, 104:108], (0, 2, 4, 6), 4, 3)
    scales_N16 = (low_N16 | (high_N16 << 4)).to(torch.int8) - 32
    low = _spread(raw_NB[:, 32:96], (0, 2, 4, 6), 32, 3).to(torch.int8)
    absent = _spread(raw_NB[:, :32], range(8), 32, 1) ^ 1
    out = out_NE.view(-1, 16, 16)
    out.copy_((low - (absent << 2).to(torch.int8)).view(out.shape))
    out.mul_((_half(raw_NB, 108) * scales_N16)[..., None])


def _scales_k(raw_NB: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scales and minima of the eight parts of a Q4_K or Q5_K block, each (N, 8, 1), scaled."""
    first_N4, second_N4, mixed_N4 = raw_NB[:, 4:8], raw_NB[:, 8:12], raw_NB[:, 12:16]
    scales_N8 = torch.cat([first_N4 & 63, (mixed_N4 & 15) | ((first_N4 >> 2) & 48)], dim=1)
    minima_N8 = torch.cat([second_N4 & 63, (mixed_N4 >> 4) | ((second_N4 >> 2) & 48)], dim=1)
    return (_half(raw_NB, 0) * scales_N8)[..., None], (_half(raw_NB, 2) * minima_N8)[..., None]


def _q4_k(raw_NB: Tensor, out_NE: Tensor) -> None:
    scales, minima = _scales_k(raw_NB)
    out = out_NE.view(-1, 8, 32)
    pairs_N4P = raw_NB[:, 16:].view(-1, 4, 32)
    out[:, 0::2].copy_(pairs_N4P & 15)
    out[:, 1::2].copy_(pairs_N4P >> 4)
    out.mul_(scales).sub_(minima)


def _q5_k(raw_NB: Tensor, out_NE: Tensor) -> None:
    scales, minima = _scales_k(raw_NB)
    low = _spread(raw_NB[:, 48:], (0, 4), 32, 15)
    high = _spread(raw_NB[:, 16:48], range(8), 32, 1) << 4
    out = out_NE.view(-1, 8, 32)
    out.copy_((low | high).view(out.shape))
    out.mul_(scales).sub_(minima)


def _q6_k(raw_NB: Tensor, out_NE: Tensor) -> None:
    low = _spread(raw_NB[:, :128], (0, 4), 64, 15)
    high = _spread(raw_NB[:, 128:192], (0, 2, 4, 6), 32, 3) << 4
    out = out_NE.view(-1, 16, 16)
    out.copy_((low | high).view(out.shape))
    scales_N16 = raw_NB[:, 192:208].view(torch.int8)
    out.sub_(32).mul_((_half(raw_NB, 208) * scales_N16)[..., None])


def _scale_bytes(scale_N1: Tensor, kind: str) -> Tensor:
    half_N1 = scale_N1.to(torch.float16)
    if not bool(half_N1.isfinite().all()):
        raise CheckpointError(f"{kind}: the tensor holds numbers too large or not finite; store it as F32")
    return half_N1.view(torch.uint8)


def _inverse(scale_N1: Tensor) -> Tensor:
    return torch.where(scale_N1 == 0, scale_N1, 1 / scale_N1)


def _pack_q8_0(numbers_NE: Tensor, packed_NB: Tensor) -> None:
    scale_N1 = numbers_NE.abs().amax(dim=1, keepdim=True) / 127
    packed_NB[:, :2] = _scale_bytes(scale_N1, "Q8_0")
    scaled_NE = numbers_NE * _inverse(scale_N1)
    size_NE = scaled_NE.abs()
    whole_NE = size_NE.floor()
    rounded_NE = whole_NE + ((size_NE - whole_NE) * 2).floor_()  # halves go away from zero
    packed_NB[:, 2:] = rounded_NE.copysign_(scaled_NE).to(torch.int8).view(torch.uint8)


def _pack_q4_0(numbers_NE: Tensor, packed_NB: Tensor) -> None:
    farthest_N1 = numbers_NE.abs().argmax(dim=1, keepdim=True)
    scale_N1 = numbers_NE.gather(1, farthest_N1) / -8
    packed_NB[:, :2] = _scale_bytes(scale_N1, "Q4_0")
    codes_NE = (numbers_NE * _inverse(scale_N1)).add_(8.5).clamp_(0, 15).to(torch.uint8)
    packed_NB[:, 2:] = codes_NE[:, :16] | (codes_NE[:, 16:] << 4)


_PACK: Mapping[str, Callable[[Tensor, Tensor], None]] = MappingProxyType({"Q8_0": _pack_q8_0, "Q4_0": _pack_q4_0})
BLOCK_FORMATS: Mapping[str, BlockFormat] = MappingProxyType(
    {
        "Q8_0": BlockFormat(_SMALL, 34, _q8_0),
        "Q4_0": BlockFormat(_SMALL, 18, _q4_0),
        "Q4_1": BlockFormat(_SMALL, 20, _q4_1),
        "Q5_0": BlockFormat(_SMALL, 22, _q5_0),
        "Q5_1": BlockFormat(_SMALL, 24, _q5_1),
        "Q2_K": BlockFormat(_LARGE, 84, _q2_k),
        "Q3_K": BlockFormat(_LARGE, 110, _q3_k),
        "Q4_K": BlockFormat(_LARGE, 144, _q4_k),
        "Q5_K": BlockFormat(_LARGE, 176, _q5_k),
        "Q6_K": BlockFormat(_LARGE, 210, _q6_k),
    }
)
"""The block formats read, by ggml's names."""
