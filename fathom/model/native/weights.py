"""Weights of modules in the form that the native step reads: packed once, and packed again in place when they change.

X matrices of a stack, Y rows of a matrix, Z its columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fathom.kernels.native.library import Matrix
from fathom.kernels.native.matrix import PackedFormat, PackedMatrix, pack, pack_experts, pack_into

_FORMATS: dict[torch.dtype, PackedFormat] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

Source = Callable[[], Tensor]
"""Gives a module's weights as they are at the moment."""


class PackedWeights:
    """What the structures of one model point to; it must live as long as they do."""

    def __init__(self) -> None:
        self._vectors: list[tuple[Source, Tensor]] = []
        self._matrices: list[tuple[Source, list[PackedMatrix]]] = []
        self._kept: list[object] = []

    @property
    def nbytes(self) -> int:
        """Bytes of what was copied and packed."""
        packed = sum(matrix.nbytes for _, matrices in self._matrices for matrix in matrices)
        return packed + sum(data.nbytes for _, data in self._vectors)

    def refresh(self) -> None:
        """Copy and pack the weights as they are now, in place."""
        for source, data in self._vectors:
            data.copy_(source().detach().flatten())
        for source, matrices in self._matrices:
            for weight_YZ, matrix in zip(source().detach(), matrices, strict=True):
                pack_into(weight_YZ, matrix)

    def keep(self, value: object) -> None:
        """Hold something that the structures point to."""
        self._kept.append(value)

    def vector(self, source: Source) -> int:
        """Return the address of a float32 copy."""
        data = source().detach().flatten().to(torch.float32, copy=True)
        self._vectors.append((source, data))
        return data.data_ptr()

    def matrix(self, source: Source) -> Matrix:
        """Pack the weights (Y, Z) that ``source`` returns."""
        weight_YZ = source()
        packed = pack(weight_YZ, _FORMATS[weight_YZ.dtype])
        self._matrices.append((lambda: source()[None], [packed]))
        return packed.struct()

    def stack(self, source: Source) -> list[Matrix]:
        """Pack weights of one shape, (X, Y, Z), each as a matrix of its own."""
        weight_XYZ = source()
        packed = list(pack_experts(weight_XYZ, _FORMATS[weight_XYZ.dtype]))
        self._matrices.append((source, packed))
        return [matrix.struct() for matrix in packed]
