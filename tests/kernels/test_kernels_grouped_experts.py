"""Grouped products against the products expert by expert in float64: values, every gradient, and no read of the device.

PyTorch's CPU runs ``grouped_mm`` too; the meta device has shapes only, and raises where data are read.
"""

from __future__ import annotations

import pytest
import torch

from fathom.kernels import grouped_swiglu, reference
from fathom.kernels.grouped_experts import grouped_swiglu_on_device, takes_grouped
from tests.kernels.test_kernels_experts import gradients, leaves, make

_WIDE = {"hidden": 16, "width": 8}
_SHAPES = [
    {},
    {"chosen": 1},
    {"tokens": 1},
    {"num_experts": 1, "chosen": 1},
    {"tokens": 60, "num_experts": 16, "chosen": 4},
    {"tokens": 3, "num_experts": 40, "chosen": 2},  # most experts have no token
    {"hidden": 10, "width": 7},  # not multiples of 16 bytes
    {"hidden": 8, "width": 5},
]


@pytest.mark.parametrize("shape", _SHAPES)
@pytest.mark.parametrize("kept_fraction", [None, 0.6, 0.0])
def test_values_and_gradients_equal_those_of_the_products_expert_by_expert(
    shape: dict[str, int], kept_fraction: float | None
) -> None:
    parts = make(**_WIDE | shape, dtype=torch.float32)
    kept = None
    if kept_fraction is not None:
        kept = torch.rand(parts[1].shape, generator=torch.Generator().manual_seed(3)) < kept_fraction
    exact = tuple(part.double() if part.is_floating_point() else part for part in parts)
    expected, expected_gradients = gradients(grouped_swiglu, exact, kept)
    actual, actual_gradients = gradients(grouped_swiglu_on_device, parts, kept)
    with torch.no_grad():
        without = grouped_swiglu_on_device(*parts, kept)
    pairs = [(actual, expected), (without, expected), *zip(actual_gradients, expected_gradients, strict=True)]
    for got, wanted in pairs:
        assert got.shape == wanted.shape
        assert (got - wanted).norm() <= 5e-7 * wanted.norm()


def test_what_lies_behind_the_last_expert_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped products leave the rows of dropped pairs as memory was: here as NaN."""
    original = torch.nn.functional.grouped_mm

    def unwritten(a: torch.Tensor, b: torch.Tensor, *, offs: torch.Tensor) -> torch.Tensor:
        found = original(a, b, offs=offs)
        if b.dim() == 3:
            found[int(offs[-1]) :] = float("nan")
        return found

    parts = make(tokens=20, **_WIDE, dtype=torch.float32)
    kept = torch.rand(parts[1].shape, generator=torch.Generator().manual_seed(3)) < 0.5
    expected = gradients(grouped_swiglu, parts, kept)
    monkeypatch.setattr(torch.nn.functional, "grouped_mm", unwritten)
    torch.testing.assert_close(gradients(grouped_swiglu_on_device, parts, kept), expected)


def test_bfloat16_stays_near_float64() -> None:
    x, indices, weights, gate_up, down = make(tokens=40, **_WIDE)
    rounded = (x.bfloat16(), indices, weights.float(), gate_up.bfloat16(), down.bfloat16())
    again = (rounded[0].double(), indices, rounded[2].double(), rounded[3].double(), rounded[4].double())
    expected, expected_gradients = gradients(reference.grouped_swiglu, again, None)
    actual, actual_gradients = gradients(grouped_swiglu_on_device, rounded, None)
    assert actual.dtype == torch.bfloat16
    for got, wanted in zip((actual, *actual_gradients), (expected, *expected_gradients), strict=True):
        assert (got.double() - wanted).norm() <= 0.03 * wanted.norm()


def test_weights_of_another_dtype_receive_gradients_in_it_and_frozen_ones_none() -> None:
    x, indices, weights, gate_up, down = make(tokens=12, **_WIDE, dtype=torch.float32)
    x = x.bfloat16().requires_grad_()
    down.requires_grad_()
    grouped_swiglu_on_device(x, indices, weights, gate_up, down).sum().backward()
    found = [None if each.grad is None else each.grad.dtype for each in (x, gate_up, down)]
    assert found == [torch.bfloat16, None, torch.float32]


@pytest.mark.parametrize("drop", [False, True])
def test_on_the_meta_device_nothing_is_read(drop: bool) -> None:
    x, indices, weights, gate_up, down = (each.to("meta") for each in make(tokens=12, **_WIDE, dtype=torch.bfloat16))
    kept = torch.empty(indices.shape, dtype=torch.bool, device="meta") if drop else None
    inputs = leaves(x, weights, gate_up, down)
    y = grouped_swiglu(inputs[0], indices, *inputs[1:], kept)
    found = torch.autograd.grad(y, inputs, torch.empty_like(y))
    assert y.shape == x.shape
    assert [each.shape for each in found] == [x.shape, weights.shape, gate_up.shape, down.shape]


def test_only_what_a_gpu_has_is_grouped() -> None:
    assert takes_grouped(torch.empty(4, 16, dtype=torch.bfloat16, device="meta"))
    assert not takes_grouped(torch.empty(4, 16, dtype=torch.float64, device="meta"))
    assert not takes_grouped(torch.empty(4, 16))
