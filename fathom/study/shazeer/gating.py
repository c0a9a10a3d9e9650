"""Noisy top-k gating and its two balance losses, flat and in two levels, as functions of tensors (Shazeer 2017).

Dimensions: N tokens, E experts, K experts per token; in two levels A groups of B experts, of which a token takes
P groups and Q experts in each: E = A B, K = P Q, and expert j of group i is number i B + j.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Gates:
    """Which experts each token takes and with what weight: ``weights_NK`` sum to 1, ``indices_NK`` are best first.

    ``importance_E`` is the sum of each expert's weights, ``load_E`` the smooth number of tokens it expects; both have a
    gradient.
    """

    weights_NK: Tensor
    indices_NK: Tensor
    importance_E: Tensor
    load_E: Tensor


def noisy_top_k(clean_NE: Tensor, scale_NE: Tensor, noise_NE: Tensor | None, k: int) -> Gates:
    """Add ``scale * noise`` to the clean logits, keep the k largest of each token and take their softmax (eqs 3-5).

    ``noise_NE`` is standard normal, None for none; ``scale_NE`` is positive.
    """
    noisy_NE = clean_NE if noise_NE is None else clean_NE + scale_NE * noise_NE
    best_NK, indices_NK = noisy_NE.topk(k, dim=-1)
    weights_NK = best_NK.softmax(-1)
    load_E = load_probability(clean_NE, scale_NE, noisy_NE, k).sum(0)
    return Gates(weights_NK, indices_NK, importance(weights_NK, indices_NK, clean_NE.shape[-1]), load_E)


def load_probability(clean: Tensor, scale: Tensor, noisy: Tensor, k: int) -> Tensor:
    """P(x, i): how likely expert i is among the k best if its own noise alone were drawn again (eqs 8-9); (..., E).

    It is 1, without a gradient, where every expert is chosen.
    """
    if k == clean.shape[-1]:
        return torch.ones_like(clean)
    chance: Tensor = torch.special.ndtr((clean - kth_excluding(noisy, k)) / scale)
    return chance


def kth_excluding(values: Tensor, k: int) -> Tensor:
    """For each entry of the last dimension the k-th largest of the others, of which there must be as many."""
    best = values.topk(k + 1, dim=-1).values
    return torch.where(values > best[..., -1:], best[..., -1:], best[..., -2:-1])


def importance(weights_NK: Tensor, indices_NK: Tensor, experts: int) -> Tensor:
    """Each expert's sum of weights over the batch (eq 6): (E,)."""
    return weights_NK.new_zeros(experts).index_add(0, indices_NK.flatten(), weights_NK.flatten())


def cv_squared(values_E: Tensor) -> Tensor:
    """CV^2, the variance of all experts over their squared mean (eqs 7 and 11 without their weights)."""
    return values_E.var(correction=0) / values_E.mean().square()


def hierarchical_gating(
    primary: tuple[Tensor, Tensor, Tensor | None], secondary: tuple[Tensor, Tensor, Tensor | None], k: tuple[int, int]
) -> Gates:
    """Choose groups, then experts within each chosen group (App. B).

    ``primary`` holds clean logits, scale and noise (N, A), ``secondary`` those of every group's own gate (N, A, B).
    A pair's weight is the product of both gates (eq 12), importance its sum (eq 13), and an expert's load is
    Load_primary,i Load_i(X_i)_j / |X_i|, where X_i are the tokens that take group i (eq 14).
    """
    groups = noisy_top_k(*primary, k[0])
    count, members = secondary[0].shape[1:]
    clean, scale = (_of_groups(values, groups.indices_NK) for values in secondary[:2])
    noise = secondary[2]
    noisy = clean if noise is None else clean + scale * _of_groups(noise, groups.indices_NK)
    best_NPQ, inner_NPQ = noisy.topk(k[1], dim=-1)
    weights_NK = (groups.weights_NK.unsqueeze(-1) * best_NPQ.softmax(-1)).flatten(1)
    indices_NK = (groups.indices_NK.unsqueeze(-1) * members + inner_NPQ).flatten(1)
    chances_NPB = load_probability(clean, scale, noisy, k[1])
    chosen_P = groups.indices_NK.flatten()
    inner_AB = clean.new_zeros(count, members).index_add(0, chosen_P, chances_NPB.flatten(0, 1))
    sizes_A1 = torch.bincount(chosen_P, minlength=count).clamp(min=1).unsqueeze(1)
    load_AB = groups.load_E.unsqueeze(1) * inner_AB / sizes_A1
    return Gates(weights_NK, indices_NK, importance(weights_NK, indices_NK, count * members), load_AB.flatten())


def _of_groups(values_NAB: Tensor, groups_NP: Tensor) -> Tensor:
    """The rows of the chosen groups: (N, P, B)."""
    return values_NAB.gather(1, groups_NP.unsqueeze(-1).expand(-1, -1, values_NAB.shape[-1]))
