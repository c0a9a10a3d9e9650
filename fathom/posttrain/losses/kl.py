"""Estimates of KL(policy || reference) from sampled tokens, and what their gradients are.

For tokens drawn from the policy, the expected gradient of each estimate is

| estimate | in the loss | in the loss, times policy / old policy | in the reward or the advantage |
|---|---|---|---|
| k1 | 0: it only adds noise | of KL(policy, reference) | of KL(policy, reference) |
| k2 | of KL(policy, reference) | of the mean of k2 | of the mean of k2, less that of KL(policy, reference) |
| k3 | of KL(reference, policy) | of KL(policy, reference) | of KL(policy, reference) less KL(reference, policy) |

so DeepSeekMath's k3 in the loss descends the other KL, whose gradient near the reference is the same to first order.
The middle column holds for tokens drawn from the old policy too. All of it is tested by enumeration. With penalties on
tokens the gradient is that of each next-token distribution, later tokens aside.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fathom.posttrain.losses import checks
from fathom.posttrain.losses import segments as answers
from fathom.spec.posttrain import KlEstimator, KlPenalty


def kl_estimate(logprobs_N: Tensor, reference_N: Tensor, kind: KlEstimator) -> Tensor:
    """Estimate KL(policy || reference) at each token, with gradient (Schulman 2020; k3 is DeepSeekMath eq 4)."""
    difference_N = logprobs_N - reference_N
    if kind == "k1":
        return difference_N
    if kind == "k2":
        return difference_N.square() / 2
    return bounded_exp(-difference_N) + difference_N - 1


def bounded_exp(log_N: Tensor) -> Tensor:
    """Exponential that stays finite, as does its gradient: above half of what would overflow it is constant."""
    return log_N.clamp(max=math.log(torch.finfo(log_N.dtype).max) / 2).exp()


def penalised_rewards(
    rewards_B: Tensor, old_N: Tensor, reference_N: Tensor, row_N: Tensor, penalty: KlPenalty
) -> Tensor:
    """Return the rewards less beta times the estimates summed over each answer: place ``reward``, before advantages.

    ``old_N`` are the log-probabilities the tokens were drawn with. No gradient.
    """
    checks.same_length(old_N=old_N, reference_N=reference_N, row_N=row_N)
    estimate_N = kl_estimate(old_N.detach(), reference_N.detach(), penalty.estimator)
    return rewards_B - penalty.beta * answers.segment_sum(estimate_N, row_N, rewards_B.shape[0]).to(rewards_B.dtype)


def penalised_advantages(advantages_N: Tensor, old_N: Tensor, reference_N: Tensor, penalty: KlPenalty) -> Tensor:
    """Return the advantages less beta times each token's estimate: place ``advantage``, after group comparison."""
    checks.same_length(advantages_N=advantages_N, old_N=old_N, reference_N=reference_N)
    return advantages_N - penalty.beta * kl_estimate(old_N.detach(), reference_N.detach(), penalty.estimator)
