"""rms_norm, rotate and swiglu against their plain forms: values, gradients, dtypes and layouts in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.kernels import reference, rms_norm, rotate, swiglu
from fathom.spec.rope import RopeLayout

LAYOUTS: tuple[RopeLayout, ...] = ("half", "interleaved")


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tables(batch: int, tokens: int, pairs: int) -> tuple[Tensor, Tensor]:
    angles = normal(batch, tokens, pairs, dtype=torch.float32, seed=5) * 3
    return angles.cos(), angles.sin()


def agree(fast: Callable[..., Tensor], plain: Callable[..., Tensor], *inputs: Tensor, limit: float) -> None:
    """Values without and with gradients, and all gradients, agree to ``limit`` of their norm; dtypes are equal."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    with torch.no_grad():
        quiet = fast(*inputs)
    actual, expected = fast(*leaves), plain(*leaves)
    upstream = normal(*actual.shape, seed=9).to(actual.dtype)
    pairs = [(quiet, expected), (actual, expected)]
    pairs += zip(
        torch.autograd.grad(actual, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    )
    for got, wanted in pairs:
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        assert (got.double() - wanted.double()).norm() <= limit * wanted.double().norm()


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("shape", [(12,), (3, 12), (2, 3, 12)])
def test_rms_norm_equals_the_plain_form(dtype: torch.dtype, limit: float, shape: tuple[int, ...]) -> None:
    x, weight = normal(*shape, dtype=dtype), normal(12, dtype=dtype, seed=1)
    agree(lambda a, b: rms_norm(a, b, 1e-5), lambda a, b: reference.rms_norm(a, b, 1e-5), x, weight, limit=limit)


def test_rms_norm_formula() -> None:
    x, weight = normal(4, 6), normal(6, seed=1)
    rows = [[value / (sum(v * v for v in row) / 6 + 0.1) ** 0.5 for value in row] for row in x.tolist()]
    torch.testing.assert_close(rms_norm(x, weight, 0.1), torch.tensor(rows, dtype=torch.float64) * weight)


def test_rms_norm_gradcheck() -> None:
    x, weight = normal(2, 3, 4).requires_grad_(), normal(4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-3), (x, weight))


@pytest.mark.parametrize("grad", [False, True])
def test_rms_norm_adds_up_bfloat16_in_float32(grad: bool) -> None:
    x, weight = torch.full((1, 4096), 0.3, dtype=torch.bfloat16), torch.ones(4096, dtype=torch.bfloat16)
    torch.testing.assert_close(rms_norm(x, weight.requires_grad_(grad), 0.0).float(), torch.ones(1, 4096))


@pytest.mark.parametrize("grad", [False, True])
def test_float32_weight_does_not_promote_a_bfloat16_stream(grad: bool) -> None:
    x = normal(3, 8, dtype=torch.bfloat16)
    assert rms_norm(x, torch.ones(8, requires_grad=grad), 1e-6).dtype == torch.bfloat16


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-7), (torch.float32, 1e-6), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("batch", [1, 2])
def test_rotate_equals_the_plain_form(layout: RopeLayout, dtype: torch.dtype, limit: float, batch: int) -> None:
    cos, sin = tables(batch, 5, 4)
    x = normal(2, 5, 3, 8, dtype=dtype)
    agree(lambda a: rotate(a, cos, sin, layout), lambda a: reference.rotate(a, cos, sin, layout), x, limit=limit)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rotate_turns_each_pair_by_its_angle(layout: RopeLayout) -> None:
    angles = torch.tensor([[[0.3, 1.1], [2.0, -0.7]]])
    x = normal(1, 2, 1, 4)
    turned = rotate(x, angles.cos(), angles.sin(), layout)
    for token in range(2):
        for pair in range(2):
            columns = (pair, pair + 2) if layout == "half" else (2 * pair, 2 * pair + 1)
            before = complex(*(float(x[0, token, 0, c]) for c in columns))
            after = complex(*(float(turned[0, token, 0, c]) for c in columns))
            angle = angles[0, token, pair]
            assert abs(after - before * complex(float(angle.cos()), float(angle.sin()))) < 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("offset", [3, 4])
def test_rotate_takes_a_slice_of_a_wider_head(layout: RopeLayout, offset: int) -> None:
    cos, sin = tables(1, 5, 4)
    x = normal(2, 5, 3, offset + 8, dtype=torch.float32)[..., offset:]
    torch.testing.assert_close(rotate(x, cos, sin, layout), reference.rotate(x, cos, sin, layout))
    torch.testing.assert_close(
        rotate(x.transpose(1, 2).contiguous().transpose(1, 2), cos, sin, layout),
        reference.rotate(x, cos, sin, layout),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rotate_gradcheck(layout: RopeLayout) -> None:
    angles = normal(2, 3, 2, seed=4)
    x = normal(2, 3, 2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: rotate(a, angles.cos(), angles.sin(), layout), (x,))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rotate_leaves_its_input_alone(layout: RopeLayout) -> None:
    cos, sin = tables(1, 5, 4)
    x = normal(2, 5, 3, 8, dtype=torch.float32)
    before = x.clone()
    rotate(x, cos, sin, layout)
    assert torch.equal(x, before)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_swiglu_equals_the_plain_form(dtype: torch.dtype, limit: float) -> None:
    agree(swiglu, reference.swiglu, normal(3, 4, 10, dtype=dtype), limit=limit)


def test_swiglu_takes_the_gate_first() -> None:
    x = normal(3, 4)
    expected = x[:, :2] / (1 + torch.exp(-x[:, :2])) * x[:, 2:]
    torch.testing.assert_close(swiglu(x), expected)


def test_swiglu_gradcheck_and_saves_its_input_only() -> None:
    x = normal(2, 3, 6).requires_grad_()
    assert torch.autograd.gradcheck(swiglu, (x,))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        swiglu(x)
    assert [t.data_ptr() for t in kept] == [x.data_ptr()]


def test_plain_swiglu_is_torch() -> None:
    x = normal(3, 4)
    assert torch.equal(reference.swiglu(x), F.silu(x[:, :2]) * x[:, 2:])
