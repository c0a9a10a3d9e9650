"""Chunked cross-entropy against all logits at once: values, gradients, ignored tokens, and how much is alive."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fathom.kernels import linear_cross_entropy, mean_linear_cross_entropy, reference


def make(dtype: torch.dtype = torch.float64, tokens: int = 11, hidden: int = 6, vocab: int = 13) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    h = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    w = torch.randn(vocab, hidden, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(vocab, (tokens,), generator=generator)
    targets[2::5] = -100
    return h, w, targets


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_per_token_loss_and_gradients_equal_the_plain_form(chunk: int) -> None:
    h, w, targets = make()
    actual = linear_cross_entropy(h, w, targets, chunk_tokens=chunk)
    expected = reference.linear_cross_entropy(h, w, targets, chunk_tokens=chunk)
    torch.testing.assert_close(actual, expected)
    assert actual[2] == 0
    upstream = torch.randn(11, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for got, wanted in zip(
        torch.autograd.grad(actual, (h, w), upstream), torch.autograd.grad(expected, (h, w), upstream), strict=True
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_mean_loss_and_gradients_equal_torch(chunk: int) -> None:
    h, w, targets = make()
    mean, loss_N = mean_linear_cross_entropy(h, w, targets, chunk_tokens=chunk)
    expected = F.cross_entropy(F.linear(h, w), targets)
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(loss_N, F.cross_entropy(F.linear(h, w), targets, reduction="none"), check_stride=False)
    assert not loss_N.requires_grad
    for got, wanted in zip(
        torch.autograd.grad(mean * 0.3, (h, w)), torch.autograd.grad(expected * 0.3, (h, w)), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_gradcheck() -> None:
    h, w, targets = make(tokens=5)
    assert torch.autograd.gradcheck(lambda a, b: linear_cross_entropy(a, b, targets, chunk_tokens=2), (h, w))
    assert torch.autograd.gradcheck(lambda a, b: mean_linear_cross_entropy(a, b, targets, chunk_tokens=2)[0], (h, w))


def test_all_ignored_is_zero_and_not_nan() -> None:
    h, w, targets = make()
    targets.fill_(-100)
    mean, loss_N = mean_linear_cross_entropy(h, w, targets, chunk_tokens=4)
    assert mean == 0
    assert not loss_N.any()
    assert not any(g.any() for g in torch.autograd.grad(mean, (h, w)))
    assert not linear_cross_entropy(h, w, targets, chunk_tokens=4).any()


def test_another_ignore_index() -> None:
    h, w, targets = make()
    targets[targets == -100] = 5
    mean, loss_N = mean_linear_cross_entropy(h, w, targets, chunk_tokens=4, ignore_index=5)
    torch.testing.assert_close(mean, F.cross_entropy(F.linear(h, w), targets, ignore_index=5))
    assert not loss_N[targets == 5].any()


def test_huge_logits_overflow_neither_way() -> None:
    h, w, targets = make(torch.float32)
    mean, loss_N = mean_linear_cross_entropy(h * 1e3, w, targets, chunk_tokens=4)
    torch.testing.assert_close(mean, F.cross_entropy(F.linear(h * 1e3, w), targets))
    assert loss_N.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(mean, (h, w)))


def test_frozen_inputs_get_no_gradient() -> None:
    h, w, targets = make()
    for wanted in (h, w):
        frozen = [t if t is wanted else t.detach() for t in (h, w)]
        mean, _ = mean_linear_cross_entropy(frozen[0], frozen[1], targets, chunk_tokens=4)
        each = linear_cross_entropy(frozen[0], frozen[1], targets, chunk_tokens=4).sum() / 9
        expected = torch.autograd.grad(F.cross_entropy(F.linear(h, w), targets), wanted)[0]
        torch.testing.assert_close(torch.autograd.grad(mean, wanted)[0], expected)
        torch.testing.assert_close(torch.autograd.grad(each, wanted)[0], expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_gives_a_float32_loss(autocast: bool) -> None:
    exact = make()
    h, w, targets = make(torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        mean, loss_N = mean_linear_cross_entropy(h, w, targets, chunk_tokens=4)
    assert mean.dtype == loss_N.dtype == torch.float32
    expected = F.cross_entropy(F.linear(exact[0], exact[1]), targets)
    assert abs(mean - expected) < 0.05
    for got, wanted in zip(torch.autograd.grad(mean, (h, w)), torch.autograd.grad(expected, exact[:2]), strict=True):
        assert (got.double() - wanted).norm() <= 0.03 * wanted.norm()


class AliveLogits(TorchDispatchMode):
    """Counts the storages of (any, V) tensors alive at once, the weight's aside, and the rows of the tallest."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.vocab, self.weight, self.most, self.rows = weight.shape[0], weight.data_ptr(), 0, 0
        self.alive: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        logits = isinstance(result, Tensor) and result.ndim == 2 and result.shape[1] == self.vocab
        if logits and result.data_ptr() != self.weight:
            self.alive.append(weakref.ref(result))
            self.rows = max(self.rows, result.shape[0])
        alive = [tensor for ref in self.alive if (tensor := ref()) is not None]
        self.alive = [weakref.ref(tensor) for tensor in alive]
        self.most = max(self.most, len({tensor.untyped_storage().data_ptr() for tensor in alive}))
        return result


@pytest.mark.parametrize("mean", [True, False])
def test_one_chunk_of_logits_is_alive_at_a_time(mean: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    h = torch.randn(10, 5, generator=generator, requires_grad=True)
    w = torch.randn(101, 5, generator=generator, requires_grad=True)
    targets = torch.randint(101, (10,), generator=generator)
    with AliveLogits(w) as logits:
        if mean:
            loss, _ = mean_linear_cross_entropy(h, w, targets, chunk_tokens=3)
        else:
            loss = linear_cross_entropy(h, w, targets, chunk_tokens=3).sum()
        loss.backward()
    assert (logits.most, logits.rows) == (1, 3)
