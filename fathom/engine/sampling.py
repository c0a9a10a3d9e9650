"""Drawing a token from logits: temperature, top-k, top-p, min-p, greedy.

Shapes: B rows (one per request), V vocabulary.

Filters act in this order: temperature, top-k, top-p, min-p. Each row draws with one uniform number from its own
generator, so a row's draws depend on its seed and its logits, never on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.spec.sampling import SamplingParams


def make_generator(seed: int | None) -> torch.Generator:
    """Make a CPU random generator of one request; None takes a seed from the operating system."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def filtered_probabilities(logits_BV: Tensor, params: Sequence[SamplingParams]) -> tuple[Tensor, Tensor]:
    """Return (probabilities_BV, token_ids_BV), both sorted by falling probability; filtered tokens have 0.

    Rows with temperature 0 put everything on their best token. A row always keeps its best token.
    """
    device = logits_BV.device
    greedy_B = torch.tensor([p.temperature == 0 for p in params], device=device)
    temperature_B = torch.tensor([p.temperature or 1.0 for p in params], device=device)
    vocab = logits_BV.shape[-1]
    top_k_B = torch.tensor([min(p.top_k, vocab) or vocab for p in params], device=device)
    top_k_B = torch.where(greedy_B, 1, top_k_B)
    top_p_B = torch.tensor([p.top_p for p in params], device=device)
    min_p_B = torch.tensor([p.min_p for p in params], device=device)

    logits_BV = logits_BV.float()
    best_B1 = logits_BV.max(-1, keepdim=True).values
    scaled_BV = (logits_BV - best_B1) / temperature_B[:, None]
    sorted_BV, ids_BV = scaled_BV.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(vocab, device=device)
    sorted_BV = sorted_BV.masked_fill(rank_V >= top_k_B[:, None], -torch.inf)
    probabilities_BV = sorted_BV.softmax(-1)
    mass_before_BV = probabilities_BV.cumsum(-1) - probabilities_BV
    removed_BV = (mass_before_BV >= top_p_B[:, None]) & (top_p_B < 1)[:, None]
    removed_BV = removed_BV | (probabilities_BV < min_p_B[:, None] * probabilities_BV[:, :1])
    removed_BV[:, 0] = False
    probabilities_BV = probabilities_BV.masked_fill(removed_BV, 0.0)
    return probabilities_BV / probabilities_BV.sum(-1, keepdim=True), ids_BV


def draw(
    logits_BV: Tensor, params: Sequence[SamplingParams], generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """Draw one token per row; return (token_ids_B, logprobs_B).

    ``logprobs_B`` are log-probabilities of the drawn tokens under the unfiltered softmax at temperature 1, the
    number a trainer computes for the same sequence.
    """
    logits_BV = logits_BV.float()
    if all(p.temperature == 0 for p in params):
        ids_B = logits_BV.argmax(-1)
    else:
        probabilities_BV, sorted_ids_BV = filtered_probabilities(logits_BV, params)
        uniform_B1 = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])[:, None]
        cumulative_BV = probabilities_BV.double().cumsum(-1)
        total_B1 = cumulative_BV[:, -1:]
        index_B1 = torch.searchsorted(cumulative_BV, uniform_B1.to(cumulative_BV.device) * total_B1, right=True)
        last_B1 = (probabilities_BV > 0).sum(-1, keepdim=True) - 1
        ids_B = sorted_ids_BV.gather(-1, index_B1.minimum(last_B1))[:, 0]
    logprobs_B = logits_BV.gather(-1, ids_B[:, None])[:, 0] - logits_BV.logsumexp(-1)
    return ids_B, logprobs_B
