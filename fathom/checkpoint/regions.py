"""Reading a box of a tensor from a file, and little besides.

What lies together is read at once into where it belongs. Short runs with small gaps between them are read with the
gaps, in blocks of a few megabytes; gaps that are longer are skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import FileIO

import torch
from torch import Tensor

BLOCK_BYTES = 1 << 22
"""The most that is held beside the destination."""
_GAP_BYTES = 1 << 16
"""Bytes from which skipping takes less time than reading on."""


def read_region(
    file: FileIO, place: int, shape: Sequence[int], dtype: torch.dtype, offset: Sequence[int], destination: Tensor
) -> None:
    """Fill ``destination`` with the box of its shape that begins at ``offset`` of a stored tensor.

    The tensor is stored contiguously from byte ``place``. ``destination`` may be on any device, of any strides and
    type.

    Raises:
        EOFError: the file ends within the box.
    """
    if not destination.numel():
        return
    strides, step = [0] * len(shape), dtype.itemsize
    for dim in reversed(range(len(shape))):
        strides[dim], step = step, step * shape[dim]
    place += sum(index * stride for index, stride in zip(offset, strides, strict=True))
    _read(file, place, dtype, strides, destination.detach())


def fill(file: FileIO, place: int, memory: memoryview) -> None:
    """Read bytes from a place until ``memory`` is full; ``EOFError`` where the file ends before."""
    file.seek(place)
    while memory:
        count = file.readinto(memory)
        if not count:
            raise EOFError("it ends within a tensor")
        memory = memory[count:]


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor on the CPU."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _read(file: FileIO, place: int, dtype: torch.dtype, strides: Sequence[int], destination: Tensor) -> None:
    """Read a box whose elements are ``strides`` bytes apart in the file, its first one at ``place``."""
    lengths = destination.shape
    span, gap = _extent(strides, lengths, dtype.itemsize)
    direct = destination.device.type == "cpu" and destination.dtype == dtype and destination.is_contiguous()
    if direct and span == destination.nbytes:
        fill(file, place, tensor_bytes(destination))
        return
    if span <= BLOCK_BYTES and gap < _GAP_BYTES:
        block = torch.empty(span // dtype.itemsize, dtype=dtype)
        fill(file, place, tensor_bytes(block))
        destination.copy_(block.as_strided(lengths, [stride // dtype.itemsize for stride in strides]))
        return
    dim = next(dim for dim, length in enumerate(lengths) if length > 1)
    inner, inner_gap = _extent(strides[dim + 1 :], lengths[dim + 1 :], dtype.itemsize)
    together = max(inner_gap, strides[dim] - inner) < _GAP_BYTES and inner <= BLOCK_BYTES
    count = (BLOCK_BYTES - inner) // strides[dim] + 1 if together else 1
    for start in range(0, lengths[dim], count):
        part = destination.narrow(dim, start, min(count, lengths[dim] - start))
        _read(file, place + start * strides[dim], dtype, strides, part)


def _extent(strides: Sequence[int], lengths: Sequence[int], itemsize: int) -> tuple[int, int]:
    """Return the bytes from a box's first element to the end of its last, and the longest gap between its runs."""
    span, gap = itemsize, 0
    for stride, length in zip(reversed(strides), reversed(lengths), strict=True):
        if length > 1:
            gap = max(gap, stride - span)
            span += (length - 1) * stride
    return span, gap


def is_inside(shape: Sequence[int], offset: Sequence[int], lengths: Sequence[int]) -> bool:
    """Whether a box lies within a tensor of a shape."""
    return len(shape) == len(offset) == len(lengths) and all(
        0 <= start <= start + length <= size for size, start, length in zip(shape, offset, lengths, strict=True)
    )
