"""Preference losses against their formulas written with math.exp, and their gradients against hand-made ones."""

from __future__ import annotations

import math

import pytest
import torch

from fathom.errors import DataError
from fathom.posttrain.losses import answer_logprobs, dpo_loss, pairwise_loss, pointwise_loss
from fathom.spec.posttrain import DpoLoss, PointwiseLoss

LENGTHS = (3, 2, 1, 4)
ROWS = torch.tensor([row for row, length in enumerate(LENGTHS) for _ in range(length)])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_dpo_loss_and_gradient_equal_equation_7(beta: float, smoothing: float, average: bool) -> None:
    noise = torch.randn(2, len(ROWS), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    policy, reference = noise[0].clone().requires_grad_(), noise[1]
    spec = DpoLoss(beta=beta, label_smoothing=smoothing, average=average)
    sums = [answer_logprobs(x, ROWS, 4, average=average) for x in (policy, reference)]
    terms = dpo_loss(sums[0], sums[1], spec)
    got = torch.autograd.grad(terms.loss_X.sum(), policy)[0]

    gap = (policy.detach() - reference).tolist()
    wanted, losses, ahead = [0.0] * len(ROWS), [], []
    for pair in range(2):
        log_ratio = []
        for answer in (2 * pair, 2 * pair + 1):
            values = [g for g, row in zip(gap, ROWS.tolist(), strict=True) if row == answer]
            log_ratio.append(sum(values) / (len(values) if average else 1))
        x = beta * (log_ratio[0] - log_ratio[1])
        ahead.append(x)
        losses.append(-(1 - smoothing) * math.log(sigmoid(x)) - smoothing * math.log(sigmoid(-x)))
        slope = -(1 - smoothing) * sigmoid(-x) + smoothing * sigmoid(x)
        for i, row in enumerate(ROWS.tolist()):
            if row // 2 == pair:
                sign = 1 if row % 2 == 0 else -1
                wanted[i] = slope * beta * sign / (LENGTHS[row] if average else 1)
    torch.testing.assert_close(terms.loss_X.detach(), torch.tensor(losses, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(terms.margin_X, torch.tensor(ahead, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-10)


def test_an_answer_without_tokens_has_log_probability_zero() -> None:
    row_N = torch.tensor([0, 0, 2])
    for average in (False, True):
        assert answer_logprobs(torch.full((3,), -1.0), row_N, 3, average=average).tolist()[1] == 0


@pytest.mark.parametrize("margin", [0.0, 0.7, "each"])
def test_pairwise_loss_and_gradient(margin: float | str) -> None:
    scores = torch.tensor([1.0, -0.5, 0.25, 2.0], dtype=torch.float64, requires_grad=True)
    margins = torch.tensor([0.5, 1.5], dtype=torch.float64)
    terms = pairwise_loss(scores, margins if isinstance(margin, str) else margin)
    got = torch.autograd.grad(terms.loss_X.sum(), scores)[0].tolist()
    for pair, ahead in enumerate((1.5, -1.75)):
        x = ahead - (margins[pair].item() if isinstance(margin, str) else margin)
        assert terms.loss_X[pair].item() == pytest.approx(-math.log(sigmoid(x)), abs=1e-10)
        assert got[2 * pair : 2 * pair + 2] == pytest.approx([-sigmoid(-x), sigmoid(-x)], abs=1e-10)
        assert terms.margin_X[pair].item() == ahead


def test_pointwise_losses_and_gradients() -> None:
    scores = torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64)
    pairs = list(zip(scores.tolist(), targets.tolist(), strict=True))
    squared = pointwise_loss(scores, targets, PointwiseLoss(form="mse"))
    assert squared.tolist() == pytest.approx([(s - t) ** 2 for s, t in pairs], abs=1e-10)
    assert torch.autograd.grad(squared.sum(), scores)[0].tolist() == pytest.approx([2 * (s - t) for s, t in pairs])
    entropy = pointwise_loss(scores, targets, PointwiseLoss(form="bce"))
    expected = [-t * math.log(sigmoid(s)) - (1 - t) * math.log(sigmoid(-s)) for s, t in pairs]
    assert entropy.tolist() == pytest.approx(expected, abs=1e-10)
    assert torch.autograd.grad(entropy.sum(), scores)[0].tolist() == pytest.approx([sigmoid(s) - t for s, t in pairs])


def test_extreme_scores_stay_finite() -> None:
    scores = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = pairwise_loss(scores).loss_X
    assert loss.item() == pytest.approx(2e4)
    assert torch.autograd.grad(loss.sum(), scores)[0].tolist() == [-1.0, 1.0]


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match="chosen, rejected"):
        pairwise_loss(torch.zeros(3))
    with pytest.raises(DataError, match="reference_B"):
        dpo_loss(torch.zeros(4), torch.zeros(2), DpoLoss())
    with pytest.raises(DataError, match=r"targets_B: row 1 is 1\.5; bce needs 0 to 1"):
        pointwise_loss(torch.zeros(2), torch.tensor([0.0, 1.5]), PointwiseLoss(form="bce"))
    with pytest.raises(DataError, match="targets_B: row 0 is nan"):
        pointwise_loss(torch.zeros(1), torch.tensor([float("nan")]), PointwiseLoss())
