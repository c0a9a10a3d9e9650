"""The training losses, as functions of tensors.

B batch, T tokens, D hidden size, V vocabulary, k the depth of an MTP module (from 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.kernels import mean_linear_cross_entropy
from fathom.model.moe import Routing
from fathom.model.moe.balance import balance_loss
from fathom.spec import MixtureOfExperts
from fathom.spec.targets import IGNORE_INDEX


def language_model_loss(
    hidden_BTD: Tensor, weight_VD: Tensor, targets_BT: Tensor, *, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats per predicted token, and every token's own (B, T), float32, without gradient.

    ``targets_BT`` of -100 count for nothing. At most ``chunk_tokens`` rows of logits are alive at once.
    """
    mean, loss_N = mean_linear_cross_entropy(
        hidden_BTD.flatten(0, 1),
        weight_VD,
        targets_BT.flatten(),
        chunk_tokens=chunk_tokens,
        ignore_index=IGNORE_INDEX,
    )
    return mean, loss_N.view_as(targets_BT)


def mtp_loss(
    mtp_hidden: Sequence[Tensor], weight_VD: Tensor, tokens_BT1: Tensor, *, weight: float, chunk_tokens: int
) -> Tensor:
    """Multi-token-prediction loss: lambda / D x sum over k of L^k (V3 eqs 24-25), lambda being ``weight``.

    ``mtp_hidden[k - 1]`` is (B, T - k, D), its position i predicting token i + k + 1 of ``tokens_BT1`` (B, T + 1).
    L^k divides the T - k cross-entropies by T, as the paper prints it.
    """
    length = tokens_BT1.shape[1] - 1
    losses: list[Tensor] = []
    for depth, hidden_BTD in enumerate(mtp_hidden, start=1):
        targets_BT = tokens_BT1[:, depth + 1 :]
        mean, _ = language_model_loss(hidden_BTD, weight_VD, targets_BT, chunk_tokens=chunk_tokens)
        losses.append(mean * (targets_BT.shape[1] / length))
    return torch.stack(losses).sum() * (weight / len(losses))


def total_balance_loss(routing: Sequence[Routing], moe: MixtureOfExperts) -> Tensor:
    """Sum over layers of the balance losses that ``moe.router.balance`` weighs (V2 §2.2.3, V3 eq 17)."""
    return torch.stack([balance_loss(routed, moe) for routed in routing]).sum()
