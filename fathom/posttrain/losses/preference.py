"""Losses of pairs and scores: DPO and reward models.

X pairs, B = 2 X answers, chosen and rejected in turn. Losses come one for each pair or answer: divided
by the batch's count, they add up over micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.errors import DataError
from fathom.kernels.tensors import count_indices
from fathom.posttrain.losses import checks
from fathom.posttrain.losses import segments as answers
from fathom.spec.posttrain import DpoLoss, PointwiseLoss


@dataclass(frozen=True, slots=True)
class PreferenceTerms:
    """Each pair's loss, with gradient, and the margin of the chosen answer's reward, without."""

    loss_X: Tensor
    margin_X: Tensor


def answer_logprobs(logprobs_N: Tensor, row_N: Tensor, rows: int, *, average: bool = False) -> Tensor:
    """Log-probability of each whole answer, or its mean over the answer's tokens: (B,), 0 for one without tokens."""
    checks.same_length(logprobs_N=logprobs_N, row_N=row_N)
    sum_B = answers.segment_sum(logprobs_N, row_N, rows)
    return sum_B / count_indices(row_N, rows).clamp(min=1) if average else sum_B


def dpo_loss(logprobs_B: Tensor, reference_B: Tensor, spec: DpoLoss) -> PreferenceTerms:
    """- log sigmoid of beta x (chosen's log-ratio - rejected's), the ratios being policy / reference.

    Rafailov 2023, eq 7. ``spec.average`` is a matter of ``answer_logprobs``, which makes both arguments.
    """
    checks.same_length(logprobs_B=logprobs_B, reference_B=reference_B)
    chosen_X, rejected_X = _pairs(spec.beta * (logprobs_B - reference_B.detach()))
    margin_X = chosen_X - rejected_X
    loss_X = -F.logsigmoid(margin_X)
    if spec.label_smoothing:
        loss_X = (1 - spec.label_smoothing) * loss_X - spec.label_smoothing * F.logsigmoid(-margin_X)
    return PreferenceTerms(loss_X, margin_X.detach())


def pairwise_loss(scores_B: Tensor, margin: float | Tensor = 0.0) -> PreferenceTerms:
    """Bradley-Terry: - log sigmoid(chosen - rejected - margin), the margin one number or one for each pair."""
    chosen_X, rejected_X = _pairs(scores_B)
    margin_X = chosen_X - rejected_X
    return PreferenceTerms(-F.logsigmoid(margin_X - margin), margin_X.detach())


def pointwise_loss(scores_B: Tensor, targets_B: Tensor, spec: PointwiseLoss) -> Tensor:
    """Each answer's squared error, or the cross-entropy of sigmoid(score) to a target between 0 and 1.

    Raises:
        DataError: a target is not finite, or ``bce`` is given one that is no probability.
    """
    checks.same_length(scores_B=scores_B, targets_B=targets_B)
    checks.finite("targets_B", targets_B)
    if spec.form == "mse":
        return (scores_B - targets_B).square()
    outside_B = (targets_B < 0) | (targets_B > 1)
    if outside_B.any():
        row = int(outside_B.nonzero()[0, 0])
        raise DataError(f"targets_B: row {row} is {targets_B[row].item()}; bce needs 0 to 1, use mse for other scales")
    targets_B = targets_B.to(scores_B.dtype)
    return F.binary_cross_entropy_with_logits(scores_B, targets_B, reduction="none")


def _pairs(values_B: Tensor) -> tuple[Tensor, Tensor]:
    if values_B.ndim != 1 or values_B.shape[0] % 2:
        raise DataError(
            f"pairs: answers have shape {tuple(values_B.shape)}; lay them chosen, rejected, chosen, rejected"
        )
    chosen_X, rejected_X = torch.unbind(values_B.view(-1, 2), dim=1)
    return chosen_X, rejected_X
