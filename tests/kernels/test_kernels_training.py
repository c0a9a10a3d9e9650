"""Kernels of the training step that keep less than they compute with: values and gradients as the references give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fathom import kernels
from fathom.kernels import reference
from fathom.kernels.native import library


def drawn(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def results(function: Callable[..., Tensor], inputs: list[Tensor], *further: Any) -> list[Tensor]:
    leaves = [each.clone().requires_grad_() for each in inputs]
    y = function(*leaves, *further)
    upstream = drawn(*y.shape, seed=9, dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]


def check(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for mine, plain in zip(found, expected, strict=True):
        assert mine.shape == plain.shape
        torch.testing.assert_close(mine.double(), plain.double(), rtol=tolerance, atol=tolerance * 10)


DTYPES = [pytest.param(torch.float32, 1e-5, id="float32"), pytest.param(torch.bfloat16, 2e-2, id="bfloat16")]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(
    ("tokens", "nope", "rope", "value"), [(1, 4, 2, 4), (7, 16, 8, 16), (40, 8, 8, 16), (9, 6, 2, 3)]
)
def test_latent_attention_equals_its_reference(
    dtype: torch.dtype, tolerance: float, tokens: int, nope: int, rope: int, value: int
) -> None:
    batch, heads = 2, 3
    q = drawn(batch, tokens, heads, nope + rope, seed=1, dtype=dtype)
    kv = drawn(batch, tokens, heads, nope + value, seed=2, dtype=dtype)
    key = drawn(batch, tokens, rope, seed=3, dtype=dtype)
    assert kernels.trains_latent_attention(q.requires_grad_(), kv, key)
    found = results(kernels.latent_attention, [q.detach(), kv, key], 0.3)
    check(found, results(reference.latent_attention, [x.double().detach() for x in (q, kv, key)], 0.3), tolerance)


@pytest.mark.usefixtures("native")
def test_latent_attention_is_the_same_without_the_native_library(monkeypatch: pytest.MonkeyPatch) -> None:
    q, kv, key = (
        drawn(2, 70, *shape, seed=1, dtype=torch.float32).requires_grad_() for shape in ((3, 12), (3, 20), (4,))
    )
    strided = key.repeat(1, 1, 2)[..., :4]  # as a slice of a larger tensor, and an upstream gradient of one number

    def found() -> list[Tensor]:
        out = kernels.latent_attention(q, kv, strided, 0.3)
        return [out.detach(), *torch.autograd.grad(out.sum(), (q, kv, key))]

    native = found()
    monkeypatch.setattr(library, "available", lambda: False)
    plain = found()
    check(native, plain, 1e-5)
    assert not all(map(torch.equal, native, plain))  # each way sums in an order of its own


def test_latent_attention_is_for_training_and_values_no_wider_than_keys() -> None:
    q, kv, key = (drawn(1, 4, *shape, seed=1, dtype=torch.float32) for shape in ((2, 6), (2, 8), (2,)))
    assert not kernels.trains_latent_attention(q, kv, key)
    assert kernels.trains_latent_attention(q, kv.requires_grad_(), key)
    with torch.no_grad():
        assert not kernels.trains_latent_attention(q, kv, key)
    assert not kernels.trains_latent_attention(q.double(), kv.double(), key.double())
    assert not kernels.trains_latent_attention(q, kv, key.bfloat16())
    wide = drawn(1, 4, 2, 11, seed=1, dtype=torch.float32).requires_grad_()
    assert not kernels.trains_latent_attention(q, wide, key)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_swiglu_and_its_linear_layer_equal_their_reference(dtype: torch.dtype, tolerance: float) -> None:
    gate_up, weight = drawn(2, 5, 12, seed=1, dtype=dtype), drawn(7, 6, seed=2, dtype=dtype)
    found = results(kernels.swiglu_linear, [gate_up, weight])
    check(found, results(reference.swiglu_linear, [gate_up.double(), weight.double()]), 4 * tolerance)
    alone = results(lambda x: kernels.swiglu_linear(x, weight), [gate_up])
    torch.testing.assert_close(alone[1], found[1])
    only = results(lambda w: kernels.swiglu_linear(gate_up, w), [weight])
    torch.testing.assert_close(only[1], found[2])


def test_under_autocast_swiglu_and_its_linear_layer_compute_in_its_dtype() -> None:
    gate_up, weight = drawn(2, 5, 12, seed=1, dtype=torch.bfloat16), drawn(7, 6, seed=2, dtype=torch.float32)
    leaf = weight.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = kernels.swiglu_linear(gate_up, leaf)
    assert y.dtype == torch.bfloat16
    (grad,) = torch.autograd.grad(y.sum(), leaf)
    assert grad.dtype == torch.float32
    expected = reference.swiglu_linear(gate_up.double(), weight.bfloat16().double())
    torch.testing.assert_close(y.double(), expected, rtol=5e-2, atol=0.2)


@pytest.mark.parametrize("function", ["latent", "swiglu"])
def test_neither_saves_what_it_can_rebuild(function: str) -> None:
    saved: list[tuple[int, ...]] = []
    q, kv, key = (drawn(1, 8, *s, seed=1, dtype=torch.float32).requires_grad_() for s in ((2, 6), (2, 7), (2,)))
    gate_up, weight = (drawn(*s, seed=1, dtype=torch.float32).requires_grad_() for s in ((8, 12), (7, 6)))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(tuple(x.shape)), lambda x: x):
        if function == "latent":
            kernels.latent_attention(q, kv, key, 0.3)
        else:
            kernels.swiglu_linear(gate_up, weight)
    inputs = {tuple(x.shape) for x in ((q, kv, key) if function == "latent" else (gate_up, weight))}
    assert set(saved) - inputs <= {(1, 8, 2, 3), (1, 2, 8)}  # the output, and each query's log-sum-exp
