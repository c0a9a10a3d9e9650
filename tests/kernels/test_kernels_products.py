"""Products by either library: every orientation and stride, gradients, and which library computes what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fathom.errors import SpecError
from fathom.kernels import grouped_swiglu, linear, mean_linear_cross_entropy, products, reference
from fathom.kernels.products import add_product, product
from fathom.products import VARIABLE

N, Y, X = 72, 264, 328
"""Large enough for oneDNN, and no multiple of a vector."""


@pytest.fixture(params=["blas", "onednn"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv(VARIABLE, request.param)
    products.product_choice.cache_clear()
    yield request.param
    products.product_choice.cache_clear()


class Calls(TorchDispatchMode):
    """Counts what oneDNN and what PyTorch's own functions multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.onednn = self.own = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.onednn += func._schema.name == "mkldnn::_linear_pointwise"
        self.own += func._schema.name in ("aten::mm", "aten::addmm", "aten::addmm_")
        return func(*args, **(kwargs or {}))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=2e-4)


def layouts(rows: int, columns: int, seed: int) -> list[Tensor]:
    """A matrix in memory as it comes: by rows, by columns, and as a part of a wider one both ways."""
    return [
        normal(rows, columns, seed=seed),
        normal(columns, rows, seed=seed).t(),
        normal(rows, 2 * columns, seed=seed)[:, columns:],
        normal(columns + 3, rows + 5, seed=seed)[3:, 5:].t(),
    ]


def test_products_are_right_in_every_layout(library: str) -> None:
    """oneDNN computes those whose second factor has no gaps: with gaps it is a thousand times slower."""
    products.product_choice()
    calls, count = Calls(), 0
    with torch.no_grad(), calls:
        for left in layouts(N, Y, 1):
            for right in layouts(Y, X, 2):
                expected = left.double() @ right.double()
                close(product(left, right), expected)
                wide = torch.full((N, 2 * X), 7.0)
                out = product(left, right, wide[:, :X])
                assert out.data_ptr() == wide.data_ptr()
                close(wide[:, :X], expected)
                assert bool((wide[:, X:] == 7).all())
                close(product(left, right, torch.empty(N, X, dtype=torch.float64)), expected)
                close(add_product(torch.ones(N, X), left, right), expected + 1)
                count += 4
    onednn = count // 2 if library == "onednn" else 0
    assert (calls.onednn, calls.own) == (onednn, count - onednn + 16)  # 16 expected ones


def test_what_is_no_number_stays(library: str) -> None:
    left, right = normal(N, Y), normal(Y, X)
    left[3, 5], left[4, 6], left[5, 7] = float("nan"), float("inf"), -float("inf")
    found, expected = product(left, right), left.double() @ right.double()
    close(found.nan_to_num(0, 0, 0), expected.nan_to_num(0, 0, 0))
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.isinf(), expected.isinf())


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_has_the_gradients_of_float64(library: str, bias: bool) -> None:
    inputs = [normal(2, N // 2, Y, seed=3), normal(X, Y, seed=4)] + ([normal(X, seed=5)] if bias else [])
    upstream = normal(2, N // 2, X, seed=6)
    leaves = [each.clone().requires_grad_() for each in inputs]
    wide = [each.double().requires_grad_() for each in inputs]
    calls = Calls()
    with calls:
        y = linear(*leaves)
        found = torch.autograd.grad(y, leaves, upstream)
    assert calls.onednn == (0 if library == "blas" else 3)
    expected = torch.nn.functional.linear(*wide)
    close(y.detach(), expected.detach())
    for mine, theirs in zip(found, torch.autograd.grad(expected, wide, upstream.double()), strict=True):
        close(mine, theirs)
    frozen = linear(leaves[0], inputs[1])
    (alone,) = torch.autograd.grad(frozen, leaves[0], upstream)
    close(alone, found[0])
    with torch.inference_mode():
        close(linear(*inputs), expected.detach())


def test_only_large_float32_products_outside_autocast_go_to_onednn(library: str) -> None:
    calls = Calls()
    with torch.no_grad(), calls:
        linear(normal(4, Y), normal(X, Y))
        linear(normal(N, 8), normal(16, 8))
        linear(normal(N, Y, dtype=torch.float64), normal(X, Y, dtype=torch.float64))
        linear(normal(N, Y, dtype=torch.bfloat16), normal(X, Y, dtype=torch.bfloat16))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(normal(N, Y), normal(X, Y)).dtype == torch.bfloat16
    assert calls.onednn == 0


def test_experts_and_cross_entropy_agree_with_their_references(library: str) -> None:
    tokens, hidden, width, experts = 256, 264, 136, 3
    x, upstream = normal(tokens, hidden, seed=1), normal(tokens, hidden, seed=9)
    indices = torch.stack([torch.zeros(tokens, dtype=torch.long), torch.arange(tokens) % 2 + 1], 1)
    leaves = [x, normal(tokens, 2, seed=2).abs(), normal(experts, 2 * width, hidden), normal(experts, hidden, width)]
    leaves = [each / hidden**0.25 for each in leaves]
    mine, theirs = ([each.to(dtype).requires_grad_() for each in leaves] for dtype in (torch.float32, torch.float64))
    calls = Calls()
    with calls:
        y = grouped_swiglu(mine[0], indices, *mine[1:])
        found = torch.autograd.grad(y, mine, upstream)
    assert (calls.onednn > 0, calls.own) == ((False, 18) if library == "blas" else (True, 0))
    expected = reference.grouped_swiglu(theirs[0], indices, *theirs[1:])
    close(y.detach(), expected.detach())
    for got, right in zip(found, torch.autograd.grad(expected, theirs, upstream.double()), strict=True):
        close(got, right)

    head, targets = normal(X, hidden, seed=8), torch.arange(tokens) % X
    mine, theirs = ([each.to(dtype).requires_grad_() for each in (x, head)] for dtype in (torch.float32, torch.float64))
    with calls:
        loss, _ = mean_linear_cross_entropy(*mine, targets, chunk_tokens=80)
        found = torch.autograd.grad(loss, mine)
    expected, _ = reference.mean_linear_cross_entropy(*theirs, targets, chunk_tokens=80)
    close(loss.detach(), expected.detach())
    for got, right in zip(found, torch.autograd.grad(expected, theirs), strict=True):
        close(got, right)


def test_every_library_is_measured_and_onednn_only_where_it_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_MEASURED_SECONDS", 0.0)
    monkeypatch.setattr(products, "has_native_bfloat16", lambda: True)
    found = products.measured_gflops()
    assert set(found) == {"blas", "onednn", "bfloat16"}
    assert min(found.values()) > 0
    monkeypatch.setattr(products, "has_native_bfloat16", lambda: False)
    right = products._onednn
    for wrong in (lambda left, other: right(left, other) * 1.01, lambda left, other: torch.ops.mkldnn.none(left)):
        products._onednn_works.cache_clear()
        monkeypatch.setattr(products, "_onednn", wrong)
        assert set(products.measured_gflops()) == {"blas"}
        monkeypatch.setenv(VARIABLE, "onednn")
        products.product_choice.cache_clear()
        with pytest.raises(SpecError, match="cannot be onednn"):
            products.product_choice()
    monkeypatch.undo()
    products._onednn_works.cache_clear()
    products.product_choice.cache_clear()
