"""The clipped policy loss of GRPO, all normalisation being one weight a token (DeepSeekMath eq 3, V2 eq 32).

Weights are made for the whole batch, so losses, gradients and counts of micro-batches of whole answers simply add up.
At the first update after a rollout all ratios are 1: the loss is then about 0 whatever happens, its gradient is not.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fathom.errors import DataError
from fathom.posttrain.losses import checks
from fathom.posttrain.losses import segments as answers
from fathom.posttrain.losses.kl import bounded_exp, kl_estimate
from fathom.spec.posttrain import KlPenalty, PolicyLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTerms:
    """The loss, with gradient, and what it consists of, without; every field is a sum, so micro-batches add up.

    ``policy`` and ``kl`` are weighted as the loss is, ``kl`` before beta. The others are sums over tokens: how many
    there are, at how many the ratio was cut below, above or by the dual clip, the ratios and their squares, and k3 of
    the old policy to the present one.
    """

    loss: Tensor
    policy: Tensor
    kl: Tensor
    tokens: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    dual_clipped: Tensor
    ratio: Tensor
    ratio_square: Tensor
    old_kl: Tensor

    def __add__(self, other: PolicyTerms) -> PolicyTerms:
        """Sum both; the loss loses its gradient, so call ``backward`` first."""
        return PolicyTerms(**{f.name: (getattr(self, f.name) + getattr(other, f.name)).detach() for f in fields(self)})


def token_weights(
    row_N: Tensor, rows: int, lengths_B: Tensor, spec: PolicyLoss, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Weigh each token so that the weighted sum is the batch's loss; an answer without tokens counts in the mean.

    ``rows`` is how many answers the whole batch has and ``lengths_B`` their tokens; ``row_N`` may hold a part of it.
    """
    if lengths_B.shape != (rows,):
        raise DataError(f"lengths_B: has shape {tuple(lengths_B.shape)}, not ({rows},); give a length for every answer")
    if spec.normalize == "sequence":
        return (rows * lengths_B.to(dtype).clamp(min=1)).reciprocal()[row_N]
    total = lengths_B.sum().clamp(min=1) if spec.normalize == "token" else rows * (spec.constant_length or 1)
    return torch.ones(row_N.shape, dtype=dtype, device=row_N.device) / total


def policy_loss(
    logprobs_N: Tensor,
    old_N: Tensor,
    advantages_N: Tensor,
    row_N: Tensor,
    weights_N: Tensor,
    spec: PolicyLoss,
    reference_N: Tensor | None = None,
) -> PolicyTerms:
    """Weighted sum over tokens of - min(ratio A, clip(ratio) A) + beta KL; only ``logprobs_N`` gets a gradient.

    Tokens are those the policy drew, without prompts, and a micro-batch holds whole answers. ``old_N`` are the policy's
    log-probabilities when the answers were drawn. A penalty placed in rewards or advantages is not added here
    (``kl.penalised_rewards``), only reported where ``reference_N`` is given.

    Raises:
        DataError: lengths differ, or the loss holds a KL penalty and ``reference_N`` is missing.
    """
    checks.same_length(
        logprobs_N=logprobs_N,
        old_N=old_N,
        advantages_N=advantages_N,
        row_N=row_N,
        weights_N=weights_N,
        reference_N=reference_N,
    )
    in_loss = spec.kl is not None and spec.kl.place == "loss"
    if in_loss and reference_N is None:
        raise DataError("reference_N: is missing, but the loss holds a KL penalty; give it or leave kl out")
    ratio_N = _ratio(logprobs_N, old_N.detach(), row_N, spec)
    gain_N = _clipped_gain(ratio_N, advantages_N, spec)
    policy = -(weights_N * gain_N).sum()
    kl = torch.zeros_like(policy)
    if reference_N is not None:
        kl = (weights_N * _penalty(logprobs_N, reference_N.detach(), row_N, ratio_N, spec.kl or KlPenalty())).sum()
    loss = policy + spec.kl.beta * kl if spec.kl is not None and in_loss else policy
    return PolicyTerms(
        loss=loss,
        policy=policy.detach(),
        kl=kl.detach(),
        **_counts(ratio_N.detach(), advantages_N, spec),
        old_kl=kl_estimate(old_N.detach(), logprobs_N.detach(), "k3").sum(),
    )


def _ratio(logprobs_N: Tensor, old_N: Tensor, row_N: Tensor, spec: PolicyLoss) -> Tensor:
    log_ratio_N = logprobs_N - old_N
    if spec.ratio != "token":
        log_ratio_N = answers.segment_broadcast(log_ratio_N, row_N, mean=spec.ratio == "sequence_mean")
    return bounded_exp(log_ratio_N)


def _clipped_gain(ratio_N: Tensor, advantages_N: Tensor, spec: PolicyLoss) -> Tensor:
    """min(ratio A, clip(ratio) A), and not below dual_clip A where A is negative."""
    clipped_N = ratio_N.clamp(1 - spec.clip_low, 1 + spec.upper_clip)
    gain_N = torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N)
    if spec.dual_clip is None:
        return gain_N
    return torch.where(advantages_N < 0, torch.maximum(gain_N, spec.dual_clip * advantages_N), gain_N)


def _penalty(logprobs_N: Tensor, reference_N: Tensor, row_N: Tensor, ratio_N: Tensor, spec: KlPenalty) -> Tensor:
    if spec.level == "sequence":
        logprobs_N, reference_N = (answers.segment_broadcast(x_N, row_N) for x_N in (logprobs_N, reference_N))
    estimate_N = kl_estimate(logprobs_N, reference_N, spec.estimator)
    return ratio_N * estimate_N if spec.corrected else estimate_N


def _counts(ratio_N: Tensor, advantages_N: Tensor, spec: PolicyLoss) -> dict[str, Tensor]:
    down_N, up_N = advantages_N < 0, advantages_N > 0
    bound = float("inf") if spec.dual_clip is None else spec.dual_clip
    return {
        "tokens": torch.full((), ratio_N.shape[0], dtype=torch.int64, device=ratio_N.device),
        "clipped_low": (down_N & (ratio_N < 1 - spec.clip_low)).sum(),
        "clipped_high": (up_N & (ratio_N > 1 + spec.upper_clip)).sum(),
        "dual_clipped": (down_N & (ratio_N > bound)).sum(),
        "ratio": ratio_N.sum(),
        "ratio_square": ratio_N.square().sum(),
    }
