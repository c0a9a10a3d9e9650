"""Gate and up projections: (2, F, D) and (E, 2, F, D) in Fathom's models, joined as (2F, D) and (E, 2F, D) elsewhere.

Published parts, GGUF's fused form and Fathom checkpoints of format version 1 have the rows of the gate first and those
of up behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from fathom.model.build import Shape

_DIMENSION: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"gate_up_proj.weight": (0, 3), "gate_up_proj.bias": (0, 2), "experts.gate_up_proj": (1, 4)}
)
"""By the end of a name: the dimension of gate and up, and how many dimensions the tensor has with it."""


def joined_shape(param_name: str, shape: Shape) -> Shape:
    """The shape with gate and up joined: (2, F, ...) becomes (2F, ...); other tensors' shapes as they are."""
    for end, (at, rank) in _DIMENSION.items():
        if param_name.endswith(end) and len(shape) == rank:
            return (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])
    return shape


def current_layout(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor of a checkpoint with gate and up apart: a view where it holds them joined, else itself.

    ``name`` is a parameter's, or that of its optimizer state (``PARAMETER/exp_avg``).
    """
    param_name = name.partition("/")[0]
    for end, (at, rank) in _DIMENSION.items():
        if param_name.endswith(end) and tensor.dim() == rank - 1 and tensor.shape[at] % 2 == 0:
            return tensor.reshape(*tensor.shape[:at], 2, -1, *tensor.shape[at + 1 :])
    return tensor
