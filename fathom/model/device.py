"""Which device to compute on."""

from __future__ import annotations

import torch

from fathom.errors import SpecError

DEVICES = ("auto", "cpu", "cuda", "mps")


def resolve_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``mps`` into a device that exists here; auto takes the fastest kind.

    Raises:
        SpecError: an unknown name, or a device this machine or this build of PyTorch does not have.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    if name not in available:
        raise SpecError("device", f"unknown value {name!r}", f"use one of {', '.join(DEVICES)}")
    if not available[name]:
        raise SpecError("device", f"{name} is not available here", "use auto or cpu")
    return torch.device(name)
