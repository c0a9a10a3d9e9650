"""The training losses, as functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.kernels import mean_linear_cross_entropy
from fathom.model.forward_options import PackedSequences
from fathom.model.moe import Routing
from fathom.model.moe.balance import SequenceIndex, balance_losses
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
    mtp_hidden: Sequence[Tensor],
    weight_VD: Tensor,
    targets_BT: Tensor,
    *,
    ends_BT: Tensor | None = None,
    weight: float,
    chunk_tokens: int,
) -> Tensor:
    """Multi-token-prediction loss: lambda / D x sum over k of L^k (V3 eqs 24-25), lambda being ``weight``.

    ``mtp_hidden[k - 1]`` is (B, T - k, D). Its position i predicts ``targets_BT[:, i + k]``, the target of the main
    model k positions later, and nothing where that is ``IGNORE_INDEX`` or where a sequence ends between the two:
    ``ends_BT`` (bool (B, T)) marks the last token of each. L^k is the sum of cross-entropies over the number of targets
    of the main model: T for a row that learns every token, as the paper has it.
    """
    learned = _count(targets_BT)
    losses: list[Tensor] = []
    for depth, hidden_BTD in enumerate(mtp_hidden, start=1):
        further_BT = mtp_targets(targets_BT, depth, ends_BT)
        mean, _ = language_model_loss(hidden_BTD, weight_VD, further_BT, chunk_tokens=chunk_tokens)
        losses.append(mean * (_count(further_BT) / learned))
    return torch.stack(losses).sum() * (weight / len(losses))


def mtp_targets(targets_BT: Tensor, depth: int, ends_BT: Tensor | None = None) -> Tensor:
    """The targets of the MTP module at ``depth`` (from 1), (B, T - depth); see ``mtp_loss``."""
    further_BT = targets_BT[:, depth:]
    if ends_BT is None:
        return further_BT
    within = further_BT.shape[1]
    ended_BT = torch.stack([ends_BT[:, first : first + within] for first in range(depth)]).any(0)
    return further_BT.masked_fill(ended_BT, IGNORE_INDEX)


def _count(targets_BT: Tensor) -> Tensor:
    """How many targets count; 1 where none does, as a divisor."""
    return (targets_BT != IGNORE_INDEX).sum().clamp(min=1)


def total_balance_loss(
    routing: Sequence[Routing],
    moe: MixtureOfExperts,
    *,
    packed: PackedSequences | None = None,
    sequence_share: float = 1.0,
    token_share: float = 1.0,
) -> Tensor:
    """Sum over layers of the balance losses that ``moe.router.balance`` weighs (V2 §2.2.3, V3 eq 17).

    Losses of scope "sequence" are means over sequences: rows, or the ``packed`` ones of a single row, each with the
    prefix it shares. They are multiplied by ``sequence_share``, all others by ``token_share``: the parts that a
    micro-batch has of its batch's sequences and tokens.
    """
    index = None if packed is None else SequenceIndex.of(packed, routing[0].scores_BTE.device)
    pairs = [balance_losses(routed, moe, sequences=index) for routed in routing]
    of_sequences, of_tokens = (torch.stack(parts).sum() for parts in zip(*pairs, strict=True))
    return of_sequences * sequence_share + of_tokens * token_share
