"""Parameters as DTensors: the part a process holds of a whole tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import Placement


def part_of(whole: Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> Tensor:
    """Return this process's part of a tensor that all hold, as a tensor of its own."""
    shape, offset = compute_local_shape_and_global_offset(whole.shape, mesh, placements)
    for dim, (size, start) in enumerate(zip(shape, offset, strict=True)):
        whole = whole.narrow(dim, start if size else 0, size)
    return whole.clone(memory_format=torch.contiguous_format)


def shard_parameter(module: nn.Module, name: str, mesh: DeviceMesh, placements: Sequence[Placement]) -> None:
    """Replace a module's parameter, which all processes hold, by a DTensor of which each keeps its part."""
    whole = getattr(module, name)
    part = part_of(whole.detach(), mesh, placements)
    sharded = DTensor.from_local(part, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())
    module.register_parameter(name, nn.Parameter(sharded, requires_grad=whole.requires_grad))


def local(tensor: Tensor) -> Tensor:
    """Return the tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
