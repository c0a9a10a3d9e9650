"""Training losses against their formulas, written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fathom.model.build import build
from fathom.model.moe.balance import balance_loss
from fathom.spec import ModelSpec
from fathom.train.loss import language_model_loss, mtp_loss, total_balance_loss


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_language_model_loss_is_the_mean_cross_entropy(chunk: int) -> None:
    hidden, weight = drawn(3, 5, 4).requires_grad_(), drawn(11, 4, seed=1).requires_grad_()
    targets = torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(2))
    targets[1, 2] = -100
    mean, loss_BT = language_model_loss(hidden, weight, targets, chunk_tokens=chunk)
    expected = F.cross_entropy((hidden @ weight.t()).flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(loss_BT, expected.detach().view(3, 5))
    assert not loss_BT.requires_grad
    torch.testing.assert_close(mean, expected.sum() / 14)
    found = torch.autograd.grad(mean, (hidden, weight))
    for ours, theirs in zip(found, torch.autograd.grad(expected.sum() / 14, (hidden, weight)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_mtp_loss_is_lambda_over_depth_times_the_sum() -> None:
    batch, length, vocab = 2, 6, 9
    tokens = torch.randint(0, vocab, (batch, length + 1), generator=torch.Generator().manual_seed(3))
    weight = drawn(vocab, 4)
    hidden = [drawn(batch, length - k, 4, seed=k) for k in (1, 2)]
    expected = 0.0
    for k in (1, 2):
        log_p = (hidden[k - 1] @ weight.t()).log_softmax(-1)
        for row in range(batch):
            # The paper counts from 1: position i (1..T - k) predicts token t_{i + k + 1}; here all indices start at 0.
            for i in range(length - k):
                expected -= float(log_p[row, i, tokens[row, i + k + 1]]) / length / batch
    found = mtp_loss(hidden, weight, tokens, weight=0.3, chunk_tokens=5)
    assert found.item() == pytest.approx(0.3 / 2 * expected, rel=1e-5)


def test_total_balance_loss_sums_all_layers_mtp_included(model_spec: ModelSpec) -> None:
    model = build(model_spec, seed=1)
    tokens = torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(0))
    routing = model(tokens, mtp=True).routing
    assert len(routing) == 2
    assert model_spec.moe is not None
    total = total_balance_loss(routing, model_spec.moe)
    torch.testing.assert_close(
        total, balance_loss(routing[0], model_spec.moe) + balance_loss(routing[1], model_spec.moe)
    )
    assert total > 0
    total.backward()
    gate = model.get_parameter("layers.1.mlp.gate.weight")
    assert gate.grad is not None
    assert gate.grad.abs().sum() > 0
