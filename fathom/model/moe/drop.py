"""Token dropping: by affinity under a device's budget (V2 §2.2.4), or by order under an expert's capacity (GShard).

X devices, Y queues: an expert of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.kernels.tensors import count_indices


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
    exempt_M = exempt_B.to(affinity_BTK.device)[:, None, None].expand_as(affinity_BTK).reshape(-1)
    device_M = (indices_BTK // experts_per_device).reshape(-1)
    key_M = affinity_BTK.reshape(-1).masked_fill(exempt_M, float("inf"))
    order_M = key_M.argsort(descending=True, stable=True)
    order_M = order_M[device_M[order_M].argsort(stable=True)]
    load_X = count_indices(device_M, devices)
    start_X = load_X.cumsum(0) - load_X
    rank_M = torch.arange(pairs, device=affinity_BTK.device) - start_X[device_M[order_M]]
    kept_M = torch.empty_like(exempt_M).scatter_(0, order_M, rank_M < budget)
    return (kept_M | exempt_M).view_as(indices_BTK)


def keep_in_order(indices_BTK: Tensor, *, slots: int, num_experts: int) -> Tensor:
    """Mark the pairs that get a slot: (B, T, K) bool.

    Each of the B groups has ``slots`` slots at every expert. They are assigned to first choices in the order of the
    tokens, then to second choices in the order of the tokens, and so on (GShard Alg. 1).
    """
    batch, tokens, chosen = indices_BTK.shape
    group_B11 = torch.arange(batch, device=indices_BTK.device).view(-1, 1, 1)
    queue_M = (group_B11 * num_experts + indices_BTK).transpose(1, 2).reshape(-1)
    order_M = queue_M.argsort(stable=True)
    length_Y = count_indices(queue_M, batch * num_experts)
    start_Y = length_Y.cumsum(0) - length_Y
    rank_M = torch.arange(queue_M.numel(), device=queue_M.device) - start_Y[queue_M[order_M]]
    kept_M = torch.empty_like(queue_M, dtype=torch.bool).scatter_(0, order_M, rank_M < slots)
    return kept_M.view(batch, chosen, tokens).transpose(1, 2)
