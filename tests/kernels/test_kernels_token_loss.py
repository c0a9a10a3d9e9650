"""A token-wise loss through the chunked head against all logits at once, with its gradients and entropies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fathom.kernels import linear_token_loss, reference


def make(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    h = torch.randn(11, 6, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    w = torch.randn(13, 6, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weights = torch.randn(11, generator=generator, dtype=torch.float64)
    return h, w, torch.randint(13, (11,), generator=generator), weights


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_a_loss_of_log_probabilities_has_the_value_and_gradients_of_the_plain_form(chunk: int) -> None:
    h, w, targets, weights = make()

    def loss(logprobs: Tensor, rows: slice) -> Tensor:
        return (weights[rows] * logprobs.exp() + logprobs.square()).sum()

    outputs, gradients = [], []
    for version in (linear_token_loss, reference.linear_token_loss):
        total, logprobs, entropy = version(h, w, targets, loss, chunk_tokens=chunk)
        assert not logprobs.requires_grad
        assert not entropy.requires_grad
        outputs.append((total, logprobs, entropy))
        gradients.append(torch.autograd.grad(total * 0.3, (h, w)))
    for got, wanted in zip((*outputs[0], *gradients[0]), (*outputs[1], *gradients[1]), strict=True):
        torch.testing.assert_close(got, wanted)
    distribution = torch.distributions.Categorical(logits=h @ w.T)
    torch.testing.assert_close(outputs[0][1], distribution.log_prob(targets))
    torch.testing.assert_close(outputs[0][2], distribution.entropy())


def test_gradcheck() -> None:
    h, w, targets, weights = make()

    def total(a: Tensor, b: Tensor) -> Tensor:
        return linear_token_loss(a, b, targets, lambda x, rows: (weights[rows] * x.exp()).sum(), chunk_tokens=4)[0]

    assert torch.autograd.gradcheck(total, (h, w))


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_needs_no_gradient_gets_none(frozen: int) -> None:
    h, w, targets, _ = make()
    inputs = [h, w]
    inputs[frozen] = inputs[frozen].detach()
    total, _, _ = linear_token_loss(*inputs, targets, lambda x, _: x.square().sum(), chunk_tokens=4)
    plain, _, _ = reference.linear_token_loss(*inputs, targets, lambda x, _: x.square().sum(), chunk_tokens=4)
    learning = inputs[1 - frozen]
    torch.testing.assert_close(torch.autograd.grad(total, learning), torch.autograd.grad(plain, learning))
    with torch.no_grad():
        total, logprobs, _ = linear_token_loss(h, w, targets, lambda x, _: x.sum(), chunk_tokens=4)
    torch.testing.assert_close(total, logprobs.sum())


def test_under_autocast_gradients_come_back_in_the_parameters_dtype() -> None:
    h, w, targets, _ = make(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        total, logprobs, entropy = linear_token_loss(h, w, targets, lambda x, _: -x.sum(), chunk_tokens=4)
    total.backward()
    assert logprobs.dtype == entropy.dtype == torch.float32
    logits = (h.bfloat16() @ w.bfloat16().T).float()
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).gather(1, targets[:, None])[:, 0])
    plain = torch.autograd.grad(-(h @ w.T).log_softmax(-1).gather(1, targets[:, None]).sum(), (h, w))
    for parameter, expected in zip((h, w), plain, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        torch.testing.assert_close(parameter.grad, expected, rtol=0.05, atol=0.1)
