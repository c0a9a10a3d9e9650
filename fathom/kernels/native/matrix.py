"""Weights packed for the native kernels: in panels of 16 rows, as ``csrc/fathom_native.h`` describes.

float32 and bfloat16 hold any matrix. q8, q4 and q4m need whole groups of 32 columns and hold what GGUF's Q8_0, Q4_0 and
Q4_1 hold, value by value: w = d q, w = d (q - 8) and w = d q + m, with d and m in float16.

X rows of weights, Y columns, Z bytes of one packed matrix.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from fathom.errors import SpecError
from fathom.kernels.native.library import Matrix, ThreadPool, check, library
from fathom.kernels.native.memory import ALIGNMENT, aligned_bytes
from fathom.kernels.tensors import needs_grad

MOST_THREADS = 256  # FATHOM_MOST_THREADS of pool.h

PackedFormat = Literal["float32", "bfloat16", "q8", "q4", "q4m"]
PACKED_FORMATS: tuple[PackedFormat, ...] = ("float32", "bfloat16", "q8", "q4", "q4m")  # fathom_format
PANEL_ROWS, GROUP_COLUMNS = 16, 32


@dataclass(frozen=True, slots=True)
class _GGMLType:
    number: int
    format: PackedFormat
    block_columns: int
    block_bytes: int


GGML_TYPES: Mapping[str, _GGMLType] = MappingProxyType(
    {
        "F32": _GGMLType(0, "float32", 1, 4),
        "BF16": _GGMLType(30, "bfloat16", 1, 2),
        "Q8_0": _GGMLType(8, "q8", 32, 34),
        "Q4_0": _GGMLType(2, "q4", 32, 18),
        "Q4_1": _GGMLType(3, "q4m", 32, 20),
    }
)
"""GGUF's types that are packed as they are."""


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """One packed matrix of ``rows`` outputs and ``columns`` inputs; ``data`` is uint8, aligned to 64 bytes."""

    format: PackedFormat
    rows: int
    columns: int
    data: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all panels."""
        return self.data.nbytes

    @property
    def panel_bytes(self) -> int:
        """Bytes of 16 rows."""
        return packed_bytes(self.format, PANEL_ROWS, self.columns)

    def struct(self) -> Matrix:
        """Return the ``fathom_matrix`` of this one, which must outlive it."""
        number = PACKED_FORMATS.index(self.format)
        return Matrix(self.data.data_ptr(), self.panel_bytes, number, self.rows, self.columns)

    def product(self, x: Tensor, *, quantize: bool = True, pool: ThreadPool | None = None) -> Tensor:
        """Return x w^T, (..., Y) to (..., X), like ``x`` in dtype and without gradient; sums are float32.

        ``quantize`` rounds each group of 32 activations to 8 bits where the weights are quantized. A row's result does
        not depend on the other rows. ``pool`` is by default one of as many threads as torch uses.

        Raises:
            SpecError: ``x`` has another width, is not on the CPU or requires a gradient.
        """
        if x.shape[-1:] != (self.columns,) or x.device.type != "cpu":
            raise SpecError("x", f"is {tuple(x.shape)} on {x.device}", f"pass (..., {self.columns}) on the CPU")
        if needs_grad(x):
            raise SpecError("weights", f"packed {self.format} weights pass no gradient", "use plain weights")
        x_NY = x.detach().reshape(-1, self.columns).to(torch.float32)
        if x_NY.stride(1) != 1:
            x_NY = x_NY.contiguous()
        y_NX = torch.empty(x_NY.shape[0], self.rows)
        threads = pool or shared_pool(torch.get_num_threads())
        weights = ctypes.byref(self.struct())
        source, target = (x_NY.data_ptr(), x_NY.stride(0)), (y_NX.data_ptr(), self.rows)
        check(library().fathom_product(threads.pointer, weights, *source, x_NY.shape[0], int(quantize), *target))
        return y_NX.view(*x.shape[:-1], self.rows).to(x.dtype)

    def unpack(self, rows: slice | None = None) -> Tensor:
        """Return the weights, or consecutive rows of them, as float32."""
        begin, end, step = (rows or slice(None)).indices(self.rows)
        if step != 1:
            raise SpecError("rows", f"{rows} has a step", "choose consecutive rows")
        out_XY = torch.empty(max(0, end - begin), self.columns)
        check(library().fathom_unpack(ctypes.byref(self.struct()), begin, max(begin, end), out_XY.data_ptr()))
        return out_XY


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """Stacked matrices of one shape: ``data`` is (E, Z), Z filled up to a multiple of 64; ``[i]`` is a view."""

    format: PackedFormat
    rows: int
    columns: int
    data: Tensor

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, expert: int) -> PackedMatrix:
        used = packed_bytes(self.format, self.rows, self.columns)
        return PackedMatrix(self.format, self.rows, self.columns, self.data[expert, :used])

    def __iter__(self) -> Iterator[PackedMatrix]:
        return (self[expert] for expert in range(len(self)))

    @property
    def nbytes(self) -> int:
        """Bytes of all experts."""
        return self.data.nbytes


@cache
def packed_bytes(format: PackedFormat, rows: int, columns: int) -> int:
    """Return the bytes of a packed matrix.

    Raises:
        SpecError: the format is not known, or it has no matrix of this shape.
    """
    if format not in PACKED_FORMATS:
        raise SpecError("format", f"{format!r} is not a packed format", f"use one of {', '.join(PACKED_FORMATS)}")
    nbytes: int = library().fathom_packed_bytes(PACKED_FORMATS.index(format), rows, columns)
    if nbytes < 0:
        raise SpecError("weight", library().fathom_error().decode(), "pack it in float32 or bfloat16")
    return nbytes


@cache
def shared_pool(threads: int) -> ThreadPool:
    """Return this process's pool of as many threads, or the most there can be, for products outside a step."""
    return ThreadPool(min(threads, MOST_THREADS))


def pack(weight_XY: Tensor, format: PackedFormat) -> PackedMatrix:
    """Pack a matrix; float32 and bfloat16 are read as they are, other dtypes through float32.

    q8, q4 and q4m round as GGUF's own quantizer does.

    Raises:
        SpecError: an unknown format, no whole groups of 32 columns, or numbers that the format cannot hold.
    """
    _check_dimensions(weight_XY, 2)
    rows, columns = weight_XY.shape
    packed = PackedMatrix(format, rows, columns, aligned_bytes(packed_bytes(format, rows, columns)))
    pack_into(weight_XY, packed)
    return packed


def pack_experts(weight_EXY: Tensor, format: PackedFormat) -> PackedExperts:
    """Pack stacked matrices one by one; raises as ``pack`` does."""
    _check_dimensions(weight_EXY, 3)
    experts = _empty_experts(format, *weight_EXY.shape)
    for weight_XY, packed in zip(weight_EXY, experts, strict=True):
        pack_into(weight_XY, packed)
    return experts


def pack_gguf(blocks: Tensor, kind: str, rows: int, columns: int) -> PackedMatrix:
    """Pack the bytes of a GGUF tensor, of one of ``GGML_TYPES``, without rounding anything.

    Raises:
        SpecError: the type is not packed as it is, or the bytes are not as many as the shape takes.
    """
    format = _checked_type(kind, blocks, rows * columns).format
    packed = PackedMatrix(format, rows, columns, aligned_bytes(packed_bytes(format, rows, columns)))
    _pack_blocks_into(blocks, kind, packed)
    return packed


def pack_gguf_experts(blocks: Tensor, kind: str, experts: int, rows: int, columns: int) -> PackedExperts:
    """Pack the bytes of a GGUF tensor of stacked matrices; raises as ``pack_gguf`` does."""
    format = _checked_type(kind, blocks, experts * rows * columns).format
    stacked = _empty_experts(format, experts, rows, columns)
    for blocks_1, packed in zip(blocks.reshape(experts, -1), stacked, strict=True):
        _pack_blocks_into(blocks_1, kind, packed)
    return stacked


def pack_into(weight_XY: Tensor, packed: PackedMatrix) -> None:
    """Pack a matrix in the place of another of its shape; raises as ``pack`` does."""
    plain = weight_XY.detach()
    if plain.dtype not in (torch.float32, torch.bfloat16):
        plain = plain.float()
    plain = plain.contiguous()
    arguments = (plain.data_ptr(), int(plain.dtype == torch.bfloat16), packed.data.data_ptr())
    number = PACKED_FORMATS.index(packed.format)
    if library().fathom_pack(number, packed.rows, packed.columns, *arguments):
        raise SpecError("weight", library().fathom_error().decode(), "check the checkpoint it came from")


def _pack_blocks_into(blocks: Tensor, kind: str, packed: PackedMatrix) -> None:
    plain = blocks.contiguous()
    arguments = (packed.rows, packed.columns, plain.data_ptr(), packed.data.data_ptr())
    check(library().fathom_pack_gguf(GGML_TYPES[kind].number, *arguments))


def _checked_type(kind: str, blocks: Tensor, elements: int) -> _GGMLType:
    if kind not in GGML_TYPES:
        raise SpecError("kind", f"{kind} is not packed as it is", f"use one of {', '.join(GGML_TYPES)}")
    found = GGML_TYPES[kind]
    needed = elements // found.block_columns * found.block_bytes
    if blocks.dtype != torch.uint8 or blocks.numel() != needed:
        problem = (
            f"{blocks.numel()} elements of {blocks.dtype} are not the {needed} bytes of {elements} weights in {kind}"
        )
        raise SpecError("blocks", problem, "check the tensor's shape")
    return found


def _check_dimensions(weight: Tensor, dimensions: int) -> None:
    if weight.dim() != dimensions or weight.device.type != "cpu":
        problem = f"has {weight.dim()} dimensions on {weight.device}, not {dimensions} on the CPU"
        raise SpecError("weight", problem, "pack matrices on the CPU, or stacks of them with pack_experts")


def _empty_experts(format: PackedFormat, experts: int, rows: int, columns: int) -> PackedExperts:
    used = packed_bytes(format, rows, columns)
    stride = -(-used // ALIGNMENT) * ALIGNMENT
    data = aligned_bytes(experts * stride).view(experts, stride)
    data[:, used:].zero_()
    return PackedExperts(format, rows, columns, data)
