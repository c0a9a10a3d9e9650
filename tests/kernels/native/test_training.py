"""What training does with many rows: every instruction set against PyTorch's gradients in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from fathom import kernels
from fathom.kernels import reference
from fathom.kernels.native import training

pytestmark = pytest.mark.usefixtures("isa")
SHAPES = [(1, 1), (3, 5), (7, 16), (65, 33), (200, 100), (129, 512)]


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def near(found: torch.Tensor, exact: torch.Tensor) -> None:
    assert found.shape == exact.shape
    assert (found - exact).norm() <= 5e-7 * exact.norm()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_silu_multiply_and_its_gradients(rows, width, scaled):
    gate_up, slope = (3 * numbers(rows, 2 * width + 3))[:, : 2 * width], numbers(rows, width, seed=1)
    scale = numbers(rows, seed=2) if scaled else None
    leaves = [x.double().requires_grad_() for x in (gate_up, torch.ones(rows) if scale is None else scale)]
    gate, up = leaves[0].chunk(2, 1)
    exact = F.silu(gate) * up * leaves[1][:, None]
    exact_gradients = torch.autograd.grad(exact, leaves, slope.double())

    found, grad_gate_up, grad_scale = torch.empty(rows, width), torch.empty(rows, 2 * width), torch.empty(rows)
    training.silu_multiply(gate_up, scale, found)
    near(found, exact)
    again = slope.clone()
    training.silu_multiply_gradients(gate_up, scale, again, grad_gate_up, grad_scale if scaled else None)
    assert torch.equal(again, found)
    near(grad_gate_up, exact_gradients[0])
    if scaled:
        near(grad_scale, exact_gradients[1])


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_rms_norm_and_its_gradients(rows, width):
    x, weight, slope = numbers(rows, width + 2)[:, :width], numbers(width, seed=1), numbers(rows, width, seed=2)
    leaves = [each.double().requires_grad_() for each in (x, weight)]
    exact = reference.rms_norm(*leaves, 1e-5)
    y, inverse = training.rms_norm(x, weight, 1e-5)
    near(y, exact)
    found = training.rms_norm_gradients(y, weight, inverse, slope)
    wanted = torch.autograd.grad(exact, leaves, slope.double())
    terms = (slope.double() * weight.double() / x.double().norm(dim=1, keepdim=True) * width**0.5).norm()
    assert (found[0] - wanted[0]).norm() <= 5e-7 * terms  # of one column they cancel
    near(found[1], wanted[1])


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_rows_are_added_where_they_belong_also_several_to_one_place(rows, width):
    total, x = numbers(50, width), numbers(rows, width, seed=1)
    places = torch.randint(0, 50, (rows,), generator=torch.Generator().manual_seed(2))
    exact = total.double().index_add_(0, places, x.double())
    training.add_rows(total, places, x)
    near(total, exact)


def test_results_do_not_depend_on_the_number_of_threads():
    gate_up, x, weight = numbers(400, 256), numbers(400, 128, seed=1), numbers(128, seed=2)
    places, before, found = torch.arange(400) % 90, torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        slope, grads, scales, total = x.clone(), torch.empty(400, 256), torch.empty(400), torch.zeros(90, 128)
        training.silu_multiply_gradients(gate_up, x[:, 0].contiguous(), slope, grads, scales)
        training.add_rows(total, places, x)
        y, inverse = training.rms_norm(x, weight, 1e-6)
        norms = (y, inverse, *training.rms_norm_gradients(y, weight, inverse, gate_up[:, :128].contiguous()))
        found.append([slope, grads, scales, total, *norms])
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_what_is_not_finite_stays_in_its_row_and_is_seen():
    gate_up, grads, scales = numbers(6, 80), torch.empty(6, 80), torch.empty(6)
    for row, bad in enumerate((math.nan, math.inf, -math.inf)):
        gate_up[row, 7 * row] = bad
    slope = numbers(6, 40, seed=1)
    slope[3, 39] = math.nan
    training.silu_multiply_gradients(gate_up, torch.ones(6), slope, grads, scales)
    assert [bool(row.isfinite().all()) for row in grads] == [False] * 4 + [True] * 2
    assert scales.isfinite().tolist() == [False] * 4 + [True] * 2
    x = gate_up[:, :40].contiguous()
    y, inverse = training.rms_norm(x, torch.ones(40), 1e-6)
    grad_x, grad_weight = training.rms_norm_gradients(y, torch.ones(40), inverse, numbers(6, 40, seed=2))
    assert [bool(row.isfinite().all()) for row in grad_x] == [False] * 3 + [True] * 3
    assert not grad_weight.isfinite().all()


def test_a_norm_keeps_its_result_and_not_its_input_unless_a_weight_is_zero():
    for zeros in (0, 2):
        x, weight, saved = numbers(9, 24).requires_grad_(), numbers(24, seed=1), []
        weight[:zeros] = 0.0
        slope = numbers(9, 24, seed=2)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, to=saved: to.append(t) or t, lambda t: t):
            y = kernels.rms_norm(x, weight.requires_grad_(), 1e-6)
        assert any(t.data_ptr() == x.data_ptr() for t in saved) == bool(zeros)
        leaves = [each.detach().double().requires_grad_() for each in (x, weight)]
        exact = torch.autograd.grad(reference.rms_norm(*leaves, 1e-6), leaves, slope.double())
        for found, wanted in zip(torch.autograd.grad(y, (x, weight), slope), exact, strict=True):
            near(found, wanted)


def test_what_is_taken():
    x = numbers(4, 8)
    assert training.takes(x, torch.nn.Parameter(x), x[:, :4])
    assert not training.takes(x.double())
    assert not training.takes(x, x.bfloat16())
    assert not training.takes(x.t())
    assert not training.takes(x.to("meta"))
    assert not training.takes(x.as_subclass(type("Marked", (torch.Tensor,), {})))
