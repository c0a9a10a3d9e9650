"""Training losses against their formulas, written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fathom.model.build import build
from fathom.model.moe.balance import balance_loss
from fathom.spec import ModelSpec
from fathom.spec.targets import IGNORE_INDEX
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
    found = mtp_loss(hidden, weight, tokens[:, 1:], weight=0.3, chunk_tokens=5)
    assert found.item() == pytest.approx(0.3 / 2 * expected, rel=1e-5)


@pytest.mark.parametrize("with_ends", [False, True])
def test_mtp_loss_counts_the_main_loss_targets_of_the_same_sequence_only(with_ends: bool) -> None:
    """Masked targets and those beyond the end of a sequence add nothing, to the value or to the gradient."""
    batch, length, vocab, depths = 2, 12, 9, (1, 2, 3)
    draw = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, vocab, (batch, length + 1), generator=draw)
    ends = torch.zeros(batch, length, dtype=torch.bool)
    ends[0, [3, 4, 9]] = ends[1, 6] = True
    targets = torch.where(torch.rand(batch, length, generator=draw) < 0.3, IGNORE_INDEX, tokens[:, 1:])
    targets[ends] = IGNORE_INDEX
    weight = drawn(vocab, 4)
    hidden = [drawn(batch, length - k, 4, seed=k).requires_grad_() for k in depths]
    counted: set[tuple[int, int, int]] = set()
    expected = torch.zeros(())
    learned = int((targets != IGNORE_INDEX).sum())
    for k in depths:
        for row in range(batch):
            for i in range(length - k):
                crosses = with_ends and any(ends[row, i : i + k].tolist())
                if targets[row, i + k] != IGNORE_INDEX and not crosses:
                    counted.add((k, row, i))
                    log_p = (hidden[k - 1][row, i] @ weight.t()).log_softmax(-1)
                    expected = expected - log_p[tokens[row, i + k + 1]] / learned
    found = mtp_loss(hidden, weight, targets, ends_BT=ends if with_ends else None, weight=0.3, chunk_tokens=5)
    torch.testing.assert_close(found, 0.1 * expected)
    gradients = torch.autograd.grad(found, hidden)
    torch.testing.assert_close(gradients, torch.autograd.grad(0.1 * expected, hidden))
    for k, gradient in zip(depths, gradients, strict=True):
        moved = {(k, row, i) for row, i in torch.nonzero(gradient.abs().sum(-1)).tolist()}
        assert moved == {place for place in counted if place[0] == k}
    assert len(counted) < 3 * learned


def test_mtp_loss_of_a_batch_that_learns_nothing_is_zero() -> None:
    hidden = drawn(2, 5, 4).requires_grad_()
    found = mtp_loss([hidden], drawn(9, 4), torch.full((2, 6), IGNORE_INDEX), weight=0.3, chunk_tokens=5)
    assert found == 0
    assert not torch.autograd.grad(found, hidden)[0].any()


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
