"""The pieces of tensors that this rank writes or needs, with the memory they are in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fathom.checkpoint.sharded.placement import Box, Layout
from fathom.checkpoint.sharded.tensors import narrowed
from fathom.errors import CheckpointError

Named = Mapping[str, Mapping[str, Tensor]]
"""File stem -> name -> tensor."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the tensor ``stem/name`` of a shape: ``memory`` are its values, from ``offset`` on."""

    key: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    memory: Tensor


def key_of(stem: str, name: str) -> str:
    """Return the name of a stem's tensor among those of all stems."""
    return f"{stem}/{name}"


def split_key(key: str) -> tuple[str, str]:
    """Return stem and name."""
    stem, _, name = key.partition("/")
    return stem, name


def written_pieces(tensors: Named) -> tuple[list[Piece], dict[str, str]]:
    """Return the pieces that this rank writes, and which names are further names of the same memory.

    A plain tensor is the same on every rank that gives it; one of them will write it.
    """
    found: list[Piece] = []
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for stem, named in tensors.items():
        for name, tensor in named.items():
            key, local = key_of(stem, name), local_tensor(tensor)
            identity = (stem, local.device, local.data_ptr(), local.dtype, local.shape, local.stride(), tensor.shape)
            if local.numel() and first.setdefault(identity, key) != key:
                aliases[key] = first[identity]
                continue
            boxes = _layout(key, tensor).written(key, tensor.shape, tensor.dtype.itemsize)
            found += _pieces(key, tensor, boxes)
    return found, aliases


def held_pieces(key: str, tensor: Tensor) -> Iterator[Piece]:
    """Yield all pieces of a tensor that this rank holds."""
    yield from _pieces(key, tensor, _layout(key, tensor).held(tensor.shape))


def local_tensor(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor, sharing its memory."""
    with torch.no_grad():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach()


def _layout(key: str, tensor: Tensor) -> Layout:
    if not isinstance(tensor, DTensor):
        return Layout()
    mesh, coordinate = tensor.device_mesh, tensor.device_mesh.get_coordinate()
    if coordinate is None:
        raise CheckpointError(f"{key}: lies on a mesh that this rank is not part of; give it on its own ranks only")
    layout = Layout(tuple(tensor.placements), tuple(mesh.shape), tuple(coordinate))
    layout.check(key)
    local = local_tensor(tensor)
    if sum(math.prod(box.shape) for box in layout.held(tensor.shape)) != local.numel():
        raise CheckpointError(
            f"{key}: this rank holds {tuple(local.shape)} of {tuple(tensor.shape)}, which {layout.placements} on a "
            f"mesh of {layout.mesh} do not give; distribute it by torch.distributed.tensor"
        )
    return layout


def _pieces(key: str, tensor: Tensor, boxes: list[Box]) -> Iterator[Piece]:
    local = local_tensor(tensor)
    for box in boxes:
        yield Piece(key, tuple(tensor.shape), box.offset, narrowed(local, box.local, box.shape))
