"""Which device to compute on, and how tensors made on the host come there."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.errors import SpecError

DEVICES = ("auto", "cpu", "cuda", "cuda:N", "mps")
_NUMBERED = re.compile(r"cuda:(\d{1,4})")


def resolve_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps`` into a device that exists here.

    ``auto`` takes the fastest kind.

    Raises:
        SpecError: an unknown name, or a device this machine or this build of PyTorch does not have.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    numbered = _NUMBERED.fullmatch(name)
    kind = "cuda" if numbered else name
    if kind not in available:
        raise SpecError("device", f"unknown value {name!r}", f"use one of {', '.join(DEVICES)}")
    if not available[kind]:
        raise SpecError("device", f"{name} is not available here", "use auto or cpu")
    if numbered and int(numbered[1]) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        last = f"there are {count} CUDA devices here" if count > 1 else "there is one CUDA device here"
        raise SpecError("device", f"{name} does not exist; {last}", f"use cuda:{count - 1}, auto or cpu")
    return torch.device(name)


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Return a host tensor's copy on a device, or the tensor itself on a CPU; the host does not wait for the device.

    For CUDA the tensor is copied to pinned memory first, which PyTorch reuses once the copy is done.
    """
    if device.type == "cpu":
        return host
    if device.type == "cuda" and not host.is_pinned():
        host = host.pin_memory()
    return host.to(device, non_blocking=device.type != "mps")


def numbers_on(device: torch.device, numbers: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
    """Return integers as an int64 tensor on a device, as ``to_device`` brings them there."""
    return to_device(torch.tensor(numbers, dtype=torch.int64), device)
