"""Devices by name."""

from __future__ import annotations

import pytest
import torch

from fathom.errors import SpecError
from fathom.model.device import resolve_device


def test_auto_takes_what_is_there() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    found = resolve_device("auto").type
    assert found == ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


def test_unknown_and_absent_devices_are_refused() -> None:
    with pytest.raises(SpecError, match=r"device: unknown value 'tpu'; use one of auto, cpu, cuda, mps"):
        resolve_device("tpu")
    for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if not there:
            with pytest.raises(SpecError, match=f"device: {name} is not available here; use auto or cpu"):
                resolve_device(name)
