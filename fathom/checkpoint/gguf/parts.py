"""Which tensors go into which part of a split GGUF model, and how many bytes each part takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fathom.checkpoint.gguf.blocks import BLOCK_FORMATS, FLOATS, QuantType
from fathom.checkpoint.gguf.container import DEFAULT_ALIGNMENT
from fathom.checkpoint.gguf.keys import Metadata
from fathom.checkpoint.gguf.part_names import MAX_PARTS
from fathom.checkpoint.gguf.split import SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS
from fathom.errors import SpecError
from fathom.model.build import Shape

_SCALAR_BYTES = {"UINT16": 2, "UINT32": 4, "INT32": 4, "FLOAT32": 4, "BOOL": 1}
_FIXED_BYTES = 24
"""Magic, version and the two counts."""


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor to be written: its shape with rows first, and ggml's name of its type."""

    name: str
    shape: Shape
    kind: QuantType

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        if self.kind in FLOATS:
            return math.prod(self.shape) * FLOATS[self.kind].itemsize
        block = BLOCK_FORMATS[self.kind]
        return math.prod(self.shape) // block.elements * block.nbytes

    @property
    def total_bytes(self) -> int:
        """Bytes it adds to a file: its entry in the header, and its data up to the next tensor's start."""
        entry = 8 + len(self.name.encode()) + 4 + 8 * len(self.shape) + 4 + 8
        return entry + aligned(self.nbytes)


def aligned(nbytes: int) -> int:
    """Return the next multiple of the alignment."""
    return -(-nbytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def plan_parts(
    tensors: Sequence[PlannedTensor], metadata: Metadata, max_bytes: int | None
) -> tuple[tuple[PlannedTensor, ...], ...]:
    """Share out tensors in their order, so that no file is larger than ``max_bytes`` unless one tensor alone is.

    The first part holds the metadata, and no tensor where the first one does not fit beside it.

    Raises:
        SpecError: there would be more parts than the format counts.
    """
    if max_bytes is None:
        return (tuple(tensors),)
    numbers = _metadata_bytes(split_metadata(0, 1, len(tensors)))
    filled = _FIXED_BYTES + _metadata_bytes(metadata) + numbers
    parts: list[list[PlannedTensor]] = [[]]
    for tensor in tensors:
        if filled + tensor.total_bytes + DEFAULT_ALIGNMENT > max_bytes and (parts[-1] or len(parts) == 1):
            parts.append([])
            filled = _FIXED_BYTES + numbers
        parts[-1].append(tensor)
        filled += tensor.total_bytes
    if len(parts) > MAX_PARTS:
        problem = f"{max_bytes} bytes would make {len(parts)} parts, more than the {MAX_PARTS} of the format"
        raise SpecError("--split-max-size", problem, "give a larger size")
    return tuple(map(tuple, parts))


def split_metadata(number: int, count: int, tensor_count: int) -> Metadata:
    """Return the keys of one of several parts; ``number`` counts from 0."""
    return {
        SPLIT_NO: ("UINT16", number),
        SPLIT_COUNT: ("UINT16", count),
        SPLIT_TENSORS: ("INT32", tensor_count),
    }


def _metadata_bytes(metadata: Metadata) -> int:
    """Return the bytes that metadata takes in a file."""
    return sum(8 + len(key.encode()) + 4 + _value_bytes(kind, value) for key, (kind, value) in metadata.items())


def _value_bytes(kind: str, value: Any) -> int:
    name, listed, _ = kind.partition("[]")
    if listed:
        return 12 + sum(_value_bytes(name, one) for one in value)
    return 8 + len(str(value).encode()) if name == "STRING" else _SCALAR_BYTES[name]
