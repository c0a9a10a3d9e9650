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
    with pytest.raises(SpecError, match=r"device: unknown value 'tpu'; use one of auto, cpu, cuda, cuda:N, mps"):
        resolve_device("tpu")
    for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if not there:
            with pytest.raises(SpecError, match=f"device: {name} is not available here; use auto or cpu"):
                resolve_device(name)


def test_a_cuda_device_may_be_named_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(
        SpecError, match=r"cuda:2 does not exist; there are 2 CUDA devices here; use cuda:1, auto or cpu"
    ):
        resolve_device("cuda:2")
    for name in ("cuda:", "cuda:-1", "cuda:one", "cpu:0", "cuda:1\n", "cuda:99999"):
        with pytest.raises(SpecError, match="unknown value"):
            resolve_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SpecError, match="cuda:1 is not available here; use auto or cpu"):
        resolve_device("cuda:1")
