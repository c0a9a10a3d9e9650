"""grouped_swiglu against the loop over experts: values, every gradient, and what it must not touch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fathom.kernels import experts, grouped_swiglu, reference


def make(
    tokens: int = 9,
    chosen: int = 3,
    num_experts: int = 6,
    hidden: int = 8,
    width: int = 5,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, indices, weights, gate_up, down; the last expert is never chosen when there is one to spare."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    among = max(chosen, num_experts - 1)
    indices = torch.rand(tokens, among, generator=generator).argsort(-1)[:, :chosen]
    weights = torch.rand(tokens, chosen, generator=generator, dtype=torch.float64).to(
        torch.promote_types(dtype, torch.float32)
    )
    x, gate_up, down = (
        normal(tokens, hidden),
        normal(num_experts, 2 * width, hidden),
        normal(num_experts, hidden, width),
    )
    return x, indices, weights, gate_up, down


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


def gradients(function: object, parts: tuple[Tensor, ...], kept: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    x, indices, weights, gate_up, down = parts
    inputs = leaves(x, weights, gate_up, down)
    y = function(inputs[0], indices, *inputs[1:], kept)  # type: ignore[operator]
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(y.dtype)
    return y.detach(), torch.autograd.grad(y, inputs, upstream)


SHAPES = [
    {},
    {"chosen": 1},
    {"tokens": 1},
    {"num_experts": 3},
    {"num_experts": 1, "chosen": 1},
    {"tokens": 60, "num_experts": 16, "chosen": 4},
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("drop", [False, True])
def test_values_and_gradients_equal_the_loop(shape: dict[str, int], drop: bool) -> None:
    parts = make(**shape)
    kept = torch.rand(parts[1].shape, generator=torch.Generator().manual_seed(3)) < 0.6 if drop else None
    expected, expected_gradients = gradients(reference.grouped_swiglu, parts, kept)
    actual, actual_gradients = gradients(grouped_swiglu, parts, kept)
    torch.testing.assert_close(actual, expected)
    for got, wanted in zip(actual_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("drop", [False, True])
def test_gradcheck(drop: bool) -> None:
    x, indices, weights, gate_up, down = make(tokens=5, chosen=2, num_experts=4, hidden=4, width=3)
    kept = torch.tensor([[True, False], [True, True], [False, False], [True, True], [False, True]]) if drop else None
    assert torch.autograd.gradcheck(
        lambda a, b, c, d: grouped_swiglu(a, indices, b, c, d, kept), leaves(x, weights, gate_up, down)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_near_float64(dtype: torch.dtype) -> None:
    exact = make(tokens=40)
    x, indices, weights, gate_up, down = exact
    rounded = (x.to(dtype), indices, weights.float(), gate_up.to(dtype), down.to(dtype))
    again = (rounded[0].double(), indices, rounded[2].double(), rounded[3].double(), rounded[4].double())
    expected, expected_gradients = gradients(reference.grouped_swiglu, again, None)
    actual, actual_gradients = gradients(grouped_swiglu, rounded, None)
    assert actual.dtype == dtype
    limit = 1e-5 if dtype == torch.float32 else 0.03
    for got, wanted in zip((actual, *actual_gradients), (expected, *expected_gradients), strict=True):
        assert (got.double() - wanted).norm() <= limit * wanted.norm()
    assert [g.dtype for g in actual_gradients] == [dtype, torch.float32, dtype, dtype]


@pytest.mark.parametrize("tokens", [1, 2, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_inference_equals_the_loop(tokens: int, dtype: torch.dtype) -> None:
    x, indices, weights, gate_up, down = make(tokens=tokens, dtype=dtype)
    with torch.no_grad():
        actual = grouped_swiglu(x, indices, weights, gate_up, down)
        expected = reference.grouped_swiglu(x.double(), indices, weights.double(), gate_up.double(), down.double())
    assert actual.dtype == dtype
    limit = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    assert (actual.double() - expected).norm() <= limit * expected.norm()


def test_inference_over_many_tokens_streams_to_the_same_result() -> None:
    tokens = experts._WHOLE_BUFFER_PAIRS // 3 + 1
    x, indices, weights, gate_up, down = make(tokens=tokens, hidden=4, width=2)
    with torch.no_grad():
        actual = grouped_swiglu(x, indices, weights, gate_up, down)
    torch.testing.assert_close(actual, reference.grouped_swiglu(x, indices, weights, gate_up, down))


@pytest.mark.parametrize("grad", [False, True])
def test_everything_dropped_gives_zero(grad: bool) -> None:
    parts = make()
    kept = torch.zeros(parts[1].shape, dtype=torch.bool)
    with torch.set_grad_enabled(grad):
        assert not grouped_swiglu(*parts, kept).any()
    if grad:
        y, grads = gradients(grouped_swiglu, parts, kept)
        assert not y.any()
        assert not any(g.any() for g in grads)


@pytest.mark.parametrize("grad", [False, True])
def test_no_tokens_give_no_rows(grad: bool) -> None:
    x, _, _, gate_up, down = make()
    indices, weights = torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2, dtype=torch.float64)
    y = grouped_swiglu(x[:0], indices, weights, gate_up.requires_grad_(grad), down)
    assert y.shape == (0, x.shape[1])


def test_one_token_never_reads_the_other_experts() -> None:
    x, indices, weights, gate_up, down = make(tokens=1, chosen=2)
    others = [e for e in range(gate_up.shape[0]) if e not in indices[0].tolist()]
    expected = grouped_swiglu(x, indices, weights, gate_up, down)
    gate_up[others], down[others] = float("nan"), float("nan")
    torch.testing.assert_close(grouped_swiglu(x, indices, weights, gate_up, down), expected)


class Largest(TorchDispatchMode):
    """Remembers the most numbers any one result held."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_one_token_copies_no_expert_weights() -> None:
    x, indices, weights, gate_up, down = make(tokens=1, chosen=2, num_experts=64)
    with torch.no_grad(), Largest() as largest:
        grouped_swiglu(x, indices, weights, gate_up, down)
    assert largest.numel <= gate_up[0].numel()


def test_only_the_projections_are_kept_for_the_backward_pass() -> None:
    parts = make(tokens=50, chosen=2, hidden=8, width=5)
    x, indices, weights, gate_up, down = parts
    inputs = leaves(x, weights, gate_up, down)
    own = {tensor.data_ptr() for tensor in inputs}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        grouped_swiglu(inputs[0], indices, *inputs[1:])
    new = [t for t in kept if t.data_ptr() not in own and t.is_floating_point()]
    assert sorted(tuple(t.shape) for t in new) == [(100,), (100, 10)]


def test_backward_twice_gives_the_same_gradient() -> None:
    x, indices, weights, gate_up, down = make()
    inputs = leaves(x, weights, gate_up, down)
    y = grouped_swiglu(inputs[0], indices, *inputs[1:])
    once = torch.autograd.grad(y.sum(), inputs, retain_graph=True)
    twice = torch.autograd.grad(y.sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


def test_autocast_computes_in_bfloat16_and_returns_the_input_dtype() -> None:
    parts = tuple(part.float() if part.is_floating_point() else part for part in make(tokens=40))
    expected, expected_gradients = gradients(reference.grouped_swiglu, parts, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, actual_gradients = gradients(grouped_swiglu, parts, None)
    assert actual.dtype == torch.float32
    assert not torch.allclose(actual, expected, rtol=1e-5, atol=1e-6)
    for got, wanted in zip((actual, *actual_gradients), (expected, *expected_gradients), strict=True):
        assert got.dtype == torch.float32
        assert (got - wanted).norm() <= 0.03 * wanted.norm()


def test_sorting_is_stable_and_skips_dropped_pairs() -> None:
    indices = torch.tensor([[2, 0], [0, 2], [1, 0]])
    plan = experts.dispatch_by_expert(indices, torch.tensor([[True, True], [True, False], [True, True]]), 4)
    assert plan.counts == [3, 1, 1, 0]
    assert plan.order_M.tolist() == [1, 2, 5, 4, 0]
    assert plan.tokens_M.tolist() == [0, 1, 2, 2, 0]
