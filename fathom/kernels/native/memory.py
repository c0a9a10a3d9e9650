"""Memory for the library's vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.errors import FathomError

ALIGNMENT = 64
"""Bytes; torch aligns what it allocates to as many."""


def aligned_bytes(nbytes: int) -> Tensor:
    """Return memory of unset bytes at an aligned address.

    Raises:
        FathomError: this build of torch allocates otherwise.
    """
    data = torch.empty(nbytes, dtype=torch.uint8)
    if data.data_ptr() % ALIGNMENT:
        raise FathomError(f"torch allocated memory that is not aligned to {ALIGNMENT} bytes")
    return data
