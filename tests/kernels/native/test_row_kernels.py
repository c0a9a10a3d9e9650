"""Norms, activations and the other operations on rows, every instruction set against PyTorch in float64."""

import math

import pytest
import torch

from fathom.kernels import reference
from fathom.kernels.native import library
from tests.kernels.native.kernel_table import Kernels

pytestmark = pytest.mark.usefixtures("native")

ISAS = library.usable_isas() if library.available() else ("scalar",)
WIDTHS = (1, 3, 8, 15, 16, 17, 33, 64, 100, 576)
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(scope="module", params=ISAS)
def kernels(request, native):
    return Kernels(request.param)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(found: torch.Tensor, exact: torch.Tensor, ulps: float) -> None:
    assert ((found.double() - exact).abs() <= ulps * EPS * exact.abs() + 1e-37).all()


@pytest.mark.parametrize("k", WIDTHS)
def test_rms_norm(kernels, k):
    x, weight, y = numbers(k), numbers(k, seed=1), torch.full((k + 1,), 7.0)
    kernels.rms_norm(x, weight, k, 1e-6, y)
    close(y[:k], reference.rms_norm(x.double(), weight.double(), 1e-6), 6)
    kernels.rms_norm(x, None, k, 1e-6, y)
    close(y[:k], reference.rms_norm(x.double(), torch.ones(k).double(), 1e-6), 6)
    assert y[k] == 7


@pytest.mark.parametrize("k", WIDTHS)
def test_silu_multiply_and_add_scaled(kernels, k):
    gate, up, y = 10 * numbers(k), numbers(k, seed=1), torch.full((k + 1,), 7.0)
    kernels.silu_multiply(gate, up, 0.5, k, y)
    close(y[:k], 0.5 * torch.nn.functional.silu(gate.double()) * up.double(), 5)
    exact = y[:k].double() + 0.3 * up.double()
    kernels.add_scaled(0.3, up, k, y)
    assert (y[:k] - exact).abs().max() <= 4 * EPS * exact.abs().max()
    assert y[k] == 7


def test_silu_of_extremes(kernels):
    gate = torch.tensor([-math.inf, -200.0, -104.0, -88.0, -0.0, 0.0, 88.0, 200.0, math.inf, math.nan] * 2)
    y = torch.empty(20)
    kernels.silu_multiply(gate, torch.ones(20), 1.0, 20, y)
    torch.testing.assert_close(y, torch.nn.functional.silu(gate), equal_nan=True, atol=1e-36, rtol=1e-6)
    leaf, grad_gate = gate.clone().requires_grad_(), torch.empty(20)
    torch.nn.functional.silu(leaf).sum().backward()
    kernels.silu_multiply_gradient(gate, torch.ones(20), torch.ones(20), 1.0, 20, y, grad_gate, torch.empty(20))
    torch.testing.assert_close(grad_gate, leaf.grad, equal_nan=True, atol=1e-36, rtol=1e-6)


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("pairs", [1, 4, 16, 17, 32])
def test_rotate(kernels, pairs, half):
    x, angles = numbers(2 * pairs), numbers(pairs, seed=1).double()
    layout = "half" if half else "interleaved"
    exact = reference.rotate(x.double()[None, None, None], angles.cos()[None, None], angles.sin()[None, None], layout)
    kernels.rotate(x, angles.cos().float(), angles.sin().float(), pairs, half)
    assert (x - exact.flatten()).abs().max() <= 4 * EPS * exact.abs().max()


@pytest.mark.parametrize("k", WIDTHS)
def test_softmax(kernels, k):
    x = 20 * numbers(k)
    x[k // 2 :: 7] = -math.inf if k > 1 else 0.0
    exact = (x - x.max()).double().softmax(0)  # differences are rounded, which no softmax in float32 avoids
    kernels.softmax(x, k)
    close(x, exact, 6)


@pytest.mark.parametrize("k", WIDTHS)
def test_softening_a_row_block_by_block_is_its_softmax(kernels, k):
    x, scale, weights, sums = 20 * numbers(k), 0.5, [], torch.zeros(1)
    x[k // 3 :: 5] = -math.inf if k > 2 else 0.0
    top, exact = torch.full((1,), -math.inf), (x * scale - (x * scale).max()).double().softmax(0)
    for block in x.split(max(1, k // 3)):
        old, weighed = top.clone(), block.clone()
        kernels.soften(weighed, len(block), scale, top, sums)
        weights = [each * torch.exp(old - top) for each in weights] + [weighed]
    assert float(top) == float((x * scale).max())
    torch.testing.assert_close((torch.cat(weights) / sums).double(), exact, atol=1e-6, rtol=1e-5)


def test_exponentials_are_within_two_units_in_the_last_place(kernels):
    for low, high in ((-1e-3, 0.0), (-1.0, 0.0), (-20.0, 0.0), (-86.0, 0.0)):
        x = torch.linspace(low, high, 4097)
        x[-1] = 0.0
        exact = x.double().exp()
        y = x.clone()
        kernels.softmax(y, len(y))
        # The largest is e^0, whose weight is the divisor: the quotients show each exponential.
        close(y / y[-1], exact, 4)


@pytest.mark.parametrize("bad", [[math.nan], [math.inf], [-math.inf] * 40])
def test_softmax_of_what_is_not_finite(kernels, bad):
    x = torch.cat((numbers(40)[len(bad) :], torch.tensor(bad)))
    kernels.softmax(x, 40)
    assert x.isnan().any()


def test_argmax_is_the_first_of_the_largest_or_the_first_nan(kernels):
    for k in (*WIDTHS, 1000):
        for seed in range(20):
            x = torch.randint(-9, 9, (k,), generator=torch.Generator().manual_seed(seed)).float()
            assert kernels.argmax(x, k) == int((x == x.max()).nonzero()[0])
            x[seed % k :: 3] = -math.inf
            assert kernels.argmax(x, k) == int((x == x.max()).nonzero()[0])
            x[seed * 37 % k] = math.inf
            assert kernels.argmax(x, k) == seed * 37 % k
            x[seed * 31 % k] = math.nan
            assert kernels.argmax(x, k) == seed * 31 % k


@pytest.mark.parametrize("k", WIDTHS)
def test_widen_and_narrow(kernels, k):
    x = torch.cat((numbers(k), torch.tensor([math.inf, -math.inf, 3.4e38, 1e-40, 0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8])))
    narrowed, wide = torch.empty(len(x), dtype=torch.bfloat16), torch.empty(len(x))
    kernels.narrow(x, len(x), narrowed)
    assert torch.equal(narrowed.view(torch.int16), x.bfloat16().view(torch.int16))
    kernels.widen(narrowed, len(x), wide)
    assert torch.equal(wide, narrowed.float())
    kernels.narrow(torch.full((k,), math.nan), k, narrowed)
    assert narrowed[:k].isnan().all()
