"""Keeping experts evenly used: balance losses, load statistics and the bias update, all functions of ``Routing``.

Dimensions: B batch, T tokens, E experts, K experts per token, D devices (groups of consecutive experts), P pairs.
Every loss is given without its weight and is 1 when routing is uniform, so that ``balance_loss`` is then the sum of
the weights. Frequencies count what the router chose, dropped pairs included: they measure demand, and dropping must
not hide an overload. Gradient flows through the mean scores only. Scores are divided by their sum over experts first,
as V3 eq 20 does; for softmax scores that changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.model.moe.router import Routing
from fathom.spec.moe import BalanceScope, MixtureOfExperts


def expert_loss(routing: Routing, *, scope: BalanceScope = "sequence") -> Tensor:
    """Sum over experts of frequency times mean score (V2 eqs 23-25), per sequence and averaged, or over the batch."""
    return (_frequencies(routing, scope) * _mean_scores(routing, scope)).sum(-1).mean()


def device_loss(routing: Routing, *, devices: int, scope: BalanceScope = "sequence") -> Tensor:
    """Sum over devices of the mean frequency of their experts times their total score (V2 eqs 26-28)."""
    frequencies_BD = _by_device(_frequencies(routing, scope), devices).mean(-1)
    scores_BD = _by_device(_mean_scores(routing, scope), devices).sum(-1)
    return (frequencies_BD * scores_BD).sum(-1).mean()


def communication_loss(
    routing: Routing, *, devices: int, devices_per_token: int, scope: BalanceScope = "sequence"
) -> Tensor:
    """Sum over devices of how often tokens are sent there times their total score (V2 eqs 29-31).

    A device's frequency is D / (M T) times the tokens with at least one expert on it: 1 for all when every token
    reaches exactly M = ``devices_per_token`` devices and all are reached alike.
    """
    indices_BTK = _scoped(routing.indices_BTK, scope)
    batch, tokens, _ = indices_BTK.shape
    device_BTK = indices_BTK // (routing.scores_BTE.shape[-1] // devices)
    sent_BTD = torch.zeros(batch, tokens, devices, device=indices_BTK.device).scatter_(2, device_BTK, 1.0)
    frequencies_BD = sent_BTD.sum(1) * (devices / (devices_per_token * tokens))
    scores_BD = _by_device(_mean_scores(routing, scope), devices).sum(-1)
    return (frequencies_BD * scores_BD).sum(-1).mean()


def sequence_loss(routing: Routing) -> Tensor:
    """V3's complementary sequence-wise loss (V3 eqs 17-20).

    As printed there, frequencies count the K best scores themselves, without bias or group limit, always within one
    sequence.
    """
    best_BTK = routing.scores_BTE.detach().topk(routing.indices_BTK.shape[-1], dim=-1).indices
    printed = Routing(routing.scores_BTE, best_BTK, routing.weights_BTK)
    return expert_loss(printed, scope="sequence")


def balance_loss(routing: Routing, moe: MixtureOfExperts) -> Tensor:
    """One layer's weighted sum of the losses its spec asks for; a float32 scalar, 0 when it asks for none."""
    balance = moe.router.balance
    total = routing.scores_BTE.new_zeros(())
    if balance.expert_loss:
        total = total + balance.expert_loss * expert_loss(routing, scope=balance.scope)
    if balance.device_loss:
        total = total + balance.device_loss * device_loss(routing, devices=balance.devices, scope=balance.scope)
    if balance.communication_loss:
        total = total + balance.communication_loss * communication_loss(
            routing, devices=balance.devices, devices_per_token=balance.devices_per_token, scope=balance.scope
        )
    if balance.sequence_loss:
        total = total + balance.sequence_loss * sequence_loss(routing)
    return total


def expert_counts(routing: Routing, num_experts: int) -> Tensor:
    """Pairs the router chose for each expert, dropped ones included: (E,) int64."""
    return torch.bincount(routing.indices_BTK.reshape(-1), minlength=num_experts)


def dropped(routing: Routing) -> Tensor:
    """Pairs that were dropped for lack of capacity: an int64 scalar."""
    if routing.kept_BTK is None:
        return torch.zeros((), dtype=torch.int64, device=routing.indices_BTK.device)
    return (~routing.kept_BTK).sum()


def load_entropy(counts_E: Tensor) -> Tensor:
    """Entropy of the load divided by its maximum: 1 for an even load, 0 when one expert has it all, 1 for no load."""
    total = counts_E.sum()
    share_E = counts_E.double() / total.clamp(min=1)
    entropy = -torch.xlogy(share_E, share_E).sum()
    even = torch.log(torch.tensor(float(counts_E.numel()), dtype=torch.float64, device=counts_E.device))
    return torch.where((total == 0) | (even == 0), torch.ones_like(entropy), entropy / even.clamp(min=1e-12)).float()


def max_load(counts_E: Tensor) -> Tensor:
    """The busiest expert's load over the mean load: 1 for an even load, E when one expert has it all, 1 for none."""
    mean = counts_E.double().mean()
    return torch.where(mean > 0, counts_E.max() / mean.clamp(min=1e-12), torch.ones_like(mean)).float()


def updated_bias(bias_E: Tensor, counts_E: Tensor, rate: float) -> Tensor:
    """The selection bias after a step: down by ``rate`` where the load is above the mean, up where below (V3 §2.1.2).

    ``counts_E`` is the load of the whole step's batch, summed over micro-batches and processes. A new tensor.
    """
    load_E = counts_E.to(bias_E.device, torch.float64)
    return bias_E + rate * torch.sign(load_E.mean() - load_E).to(bias_E.dtype)


def _scoped(values_BTX: Tensor, scope: BalanceScope) -> Tensor:
    """The tensor itself, or the whole batch as one long sequence."""
    return values_BTX if scope == "sequence" else values_BTX.flatten(0, 1).unsqueeze(0)


def _frequencies(routing: Routing, scope: BalanceScope) -> Tensor:
    """f_i = E / (K T) times the tokens that chose expert i: (B, E), mean 1, without gradient."""
    indices_BTK, experts = _scoped(routing.indices_BTK, scope), routing.scores_BTE.shape[-1]
    batch, tokens, chosen = indices_BTK.shape
    counts_BE = torch.zeros(batch, experts, dtype=torch.int64, device=indices_BTK.device)
    flat_BP = indices_BTK.reshape(batch, tokens * chosen)
    counts_BE.scatter_add_(1, flat_BP, torch.ones_like(flat_BP))
    return counts_BE.to(torch.float32) * (experts / (chosen * tokens))


def _mean_scores(routing: Routing, scope: BalanceScope) -> Tensor:
    """P_i, the mean over tokens of each expert's share of the scores: (B, E), sum 1."""
    scores_BTE = routing.scores_BTE / (routing.scores_BTE.sum(-1, keepdim=True) + 1e-20)
    return _scoped(scores_BTE, scope).mean(1)


def _by_device(values_BE: Tensor, devices: int) -> Tensor:
    return values_BE.view(values_BE.shape[0], devices, -1)
