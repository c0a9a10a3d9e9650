"""Token dropping: by affinity under a device's budget (V2 §2.2.4), or by order under an expert's capacity (GShard).

Dimensions: B batch, T tokens, K experts per token, E experts, P pairs of a token and an expert (P = B * T * K).
"""

from __future__ import annotations

import torch
from torch import Tensor


def exempt_sequences(batch_size: int, fraction: float, generator: torch.Generator) -> Tensor:
    """Draw which sequences never lose a token: (B,) bool on the generator's device.

    Each sequence is exempt with probability ``fraction`` independently, so the share holds over many small batches.
    """
    return torch.rand(batch_size, generator=generator, device=generator.device) < fraction


def keep_within_budget(
    affinity_BTK: Tensor,
    indices_BTK: Tensor,
    exempt_B: Tensor,
    *,
    experts_per_device: int,
    devices: int,
    capacity_factor: float,
) -> Tensor:
    """Mark the pairs that are kept: (B, T, K) bool.

    A device's budget is ``capacity_factor * B * T * K / devices`` pairs of this micro-batch, rounded down. Each
    device drops its pairs of lowest affinity until it is within budget. Pairs of exempt sequences count against the
    budget but are never dropped, even when they alone exceed it. Ties fall to the earlier pair.
    """
    pairs = affinity_BTK.numel()
    budget = int(capacity_factor * pairs / devices)
    exempt_P = exempt_B.to(affinity_BTK.device)[:, None, None].expand_as(affinity_BTK).reshape(-1)
    device_P = (indices_BTK // experts_per_device).reshape(-1)
    key_P = affinity_BTK.reshape(-1).masked_fill(exempt_P, float("inf"))
    order_P = key_P.argsort(descending=True, stable=True)
    order_P = order_P[device_P[order_P].argsort(stable=True)]
    load_D = torch.bincount(device_P, minlength=devices)
    start_D = load_D.cumsum(0) - load_D
    rank_P = torch.arange(pairs, device=affinity_BTK.device) - start_D[device_P[order_P]]
    kept_P = torch.empty_like(exempt_P).scatter_(0, order_P, rank_P < budget)
    return (kept_P | exempt_P).view_as(indices_BTK)


def keep_in_order(indices_BTK: Tensor, *, slots: int, num_experts: int) -> Tensor:
    """Mark the pairs that get a slot: (B, T, K) bool.

    Each of the B groups has ``slots`` slots at every expert. They are assigned to first choices in the order of the
    tokens, then to second choices in the order of the tokens, and so on (GShard Alg. 1).
    """
    batch, tokens, chosen = indices_BTK.shape
    group_B11 = torch.arange(batch, device=indices_BTK.device).view(-1, 1, 1)
    queue_P = (group_B11 * num_experts + indices_BTK).transpose(1, 2).reshape(-1)
    order_P = queue_P.argsort(stable=True)
    length_Q = torch.bincount(queue_P, minlength=batch * num_experts)
    start_Q = length_Q.cumsum(0) - length_Q
    rank_P = torch.arange(queue_P.numel(), device=queue_P.device) - start_Q[queue_P[order_P]]
    kept_P = torch.empty_like(queue_P, dtype=torch.bool).scatter_(0, order_P, rank_P < slots)
    return kept_P.view(batch, chosen, tokens).transpose(1, 2)
