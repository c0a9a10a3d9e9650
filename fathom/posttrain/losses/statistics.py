"""Metrics of a reinforcement learning step from the tensors of its losses. B answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.posttrain.losses.advantages import Advantages, TokenAdvantages
from fathom.posttrain.losses.policy import PolicyTerms


def policy_statistics(terms: PolicyTerms) -> dict[str, float]:
    """Loss, KL and shares of the tokens that were cut, from the sum of all micro-batches' terms; {} without tokens.

    ``old_kl`` is k3 of the old policy to the present one.
    """
    tokens = float(terms.tokens)
    if not tokens:
        return {}
    mean, square = float(terms.ratio) / tokens, float(terms.ratio_square) / tokens
    return {
        "loss": float(terms.loss.detach()),
        "policy_loss": float(terms.policy),
        "kl": float(terms.kl),
        "clipped_low": float(terms.clipped_low) / tokens,
        "clipped_high": float(terms.clipped_high) / tokens,
        "dual_clipped": float(terms.dual_clipped) / tokens,
        "ratio_mean": mean,
        "ratio_std": max(0.0, square - mean * mean) ** 0.5,
        "old_kl": float(terms.old_kl) / tokens,
    }


def answer_statistics(
    lengths_B: Tensor,
    correct: Sequence[bool | None],
    *,
    entropy_B: Tensor | None = None,
    advantages: Advantages | TokenAdvantages | None = None,
) -> dict[str, float]:
    """Mean length and entropy of right and of wrong answers, the share of right ones and of groups without variance.

    ``entropy_B`` is summed over each answer's tokens, so that the means are per token. Answers whose correctness is
    None count in ``length`` and ``entropy`` only. A mean over nothing is left out.
    """
    verdicts = {"_right": [v is True for v in correct], "_wrong": [v is False for v in correct]}
    found: dict[str, float] = {}
    for suffix, chosen in {"": [True] * len(correct), **verdicts}.items():
        chosen_B = torch.tensor(chosen, dtype=torch.bool, device=lengths_B.device)
        lengths = lengths_B[chosen_B].double()
        if lengths.numel():
            found[f"length{suffix}"] = float(lengths.mean())
        if entropy_B is not None and float(lengths.sum()):
            found[f"entropy{suffix}"] = float(entropy_B[chosen_B].double().sum() / lengths.sum())
    judged = sum(v is not None for v in correct)
    if judged:
        found["accuracy"] = sum(verdicts["_right"]) / judged
    if advantages is not None and advantages.groups:
        found["zero_variance"] = advantages.zero_variance_groups / advantages.groups
    return found
