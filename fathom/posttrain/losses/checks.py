"""Checks of tensors that losses share.

Y values of any kind.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.errors import DataError


def same_length(**tensors: Tensor | None) -> None:
    """Require vectors of one length; those that are None do not count."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first, expected = next(iter(given.items()))
    for name, tensor in given.items():
        if tensor.ndim != 1 or tensor.shape != expected.shape:
            shapes = f"has shape {tuple(tensor.shape)}, {first} {tuple(expected.shape)}"
            raise DataError(f"{name}: {shapes}; give one number for each")


def finite(name: str, values_Y: Tensor) -> None:
    """Require finite numbers; the error names the first row that holds another."""
    if not torch.isfinite(values_Y).all():
        row = int((~torch.isfinite(values_Y)).nonzero()[0, 0])
        raise DataError(f"{name}: row {row} is {values_Y[row].item()}; give a finite number or leave the answer out")
