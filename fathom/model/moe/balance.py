"""Keeping experts evenly used: balance losses, load statistics and the bias update, all functions of ``Routing``.

X anything, Y tokens counted once for each sequence they belong to, Z devices (groups of consecutive experts).

Every loss is given without its weight. Those of expert, device, communication and sequence are 1 when routing is
uniform, Shazeer's two are 0; ``z_loss`` is not about balance but keeps logits small. Losses of scope "sequence" are
means over sequences: rows, or with a ``SequenceIndex`` those packed into a single row (1, N). Frequencies count what
the router chose, dropped pairs included: they measure demand, and dropping must not hide an overload. Gradient flows
through the mean scores only. Scores are divided by their sum over experts first, as V3 eq 20 does; for softmax scores
that changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.errors import SpecError
from fathom.kernels.tensors import count_indices
from fathom.model.device import to_device
from fathom.model.forward_options import PackedSequences
from fathom.model.moe.router import Routing
from fathom.spec.moe import BalanceScope, Counted, MixtureOfExperts


@dataclass(frozen=True, slots=True)
class SequenceIndex:
    """Which tokens of a packed row (1, N) belong to which sequence; those of a shared prefix belong to several.

    ``tokens_Y`` are positions in the row, ``sequences_Y`` the sequence that each is counted for, and ``lengths_B``
    (float32) the tokens of each sequence, its prefix included.
    """

    tokens_Y: Tensor
    sequences_Y: Tensor
    lengths_B: Tensor

    @classmethod
    def of(cls, packed: PackedSequences, device: torch.device) -> SequenceIndex:
        """Index the sequences of a packed row."""
        pieces: list[Tensor] = []
        start = complete = 0
        prefixes = packed.shared_prefix_lengths or (0,) * len(packed.lengths)
        for length, prefix in zip(packed.lengths, prefixes, strict=True):
            complete = complete if prefix else start
            pieces.append(torch.cat((torch.arange(complete, complete + prefix), torch.arange(start, start + length))))
            start += length
        lengths_B = torch.tensor([len(piece) for piece in pieces])
        sequences_Y = torch.repeat_interleave(torch.arange(len(pieces)), lengths_B)
        host = (torch.cat(pieces), sequences_Y, lengths_B.to(torch.float32))
        return cls(*(to_device(each, device) for each in host))

    def sums(self, values_1NX: Tensor) -> Tensor:
        """Sum the tokens of every sequence, (B, X)."""
        sums_BX = values_1NX.new_zeros(len(self.lengths_B), values_1NX.shape[-1])
        return sums_BX.index_add(0, self.sequences_Y, values_1NX[0][self.tokens_Y])


def expert_balance_loss(
    routing: Routing,
    *,
    scope: BalanceScope = "sequence",
    counted: Counted = "chosen",
    sequences: SequenceIndex | None = None,
) -> Tensor:
    """Sum over experts of frequency times mean score (V2 eqs 23-25), per sequence and averaged, or over the batch.

    With one expert per token this is Switch's N sum f P (eq 4). ``counted`` "first" counts each token's first choice
    only: E^2 times GShard's l_aux (Alg. 1), whose groups are the sequences or the batch.
    """
    if counted == "first":
        routing = Routing(routing.scores_BTE, routing.indices_BTK[..., :1], routing.weights_BTK[..., :1])
    return (_frequencies(routing, scope, sequences) * _mean_scores(routing, scope, sequences)).sum(-1).mean()


def importance_loss(routing: Routing) -> Tensor:
    """Squared coefficient of variation of the experts' total weights over the batch (Shazeer eq 7)."""
    total_E = routing.weights_BTK.new_zeros(routing.scores_BTE.shape[-1])
    return _squared_variation(total_E.index_add(0, routing.indices_BTK.flatten(), routing.weights_BTK.flatten()))


def load_loss(routing: Routing) -> Tensor:
    """Squared coefficient of variation of the experts' expected number of tokens (Shazeer App. A).

    An expert's expectation sums over tokens the probability that it would be among the K best if its own noise were
    drawn again: smooth in the logits, where the number of tokens itself is not.

    Raises:
        SpecError: the router's scores are not noisy, or it was not training.
    """
    noise, chosen = routing.noise, routing.indices_BTK.shape[-1]
    if noise is None:
        raise SpecError("balance.load_loss", "this routing has no noise", 'train with router.score "noisy"')
    best_BTK1 = noise.noisy_BTE.topk(chosen + 1, dim=-1).values
    inside_BTE = noise.noisy_BTE > best_BTK1[..., -1:]
    # Without the expert itself, the K-th best is the (K + 1)-th of all for an expert within, the K-th for one outside.
    bar_BTE = torch.where(inside_BTE, best_BTK1[..., -1:], best_BTK1[..., -2:-1])
    reached_BTE = torch.special.ndtr((noise.clean_BTE - bar_BTE) / noise.scale_BTE)
    return _squared_variation(reached_BTE.sum((0, 1)))


def z_loss(routing: Routing) -> Tensor:
    """Mean over tokens of the squared log-sum-exp of the logits (ST-MoE eq 5); for softmax routers that kept them."""
    if routing.logits_BTE is None:
        raise SpecError("balance.z_loss", "this routing has no logits", "train with balance.z_loss above 0")
    return routing.logits_BTE.logsumexp(-1).square().mean()


def device_loss(
    routing: Routing, *, devices: int, scope: BalanceScope = "sequence", sequences: SequenceIndex | None = None
) -> Tensor:
    """Sum over devices of the mean frequency of their experts times their total score (V2 eqs 26-28)."""
    frequencies_BZ = _by_device(_frequencies(routing, scope, sequences), devices).mean(-1)
    scores_BZ = _by_device(_mean_scores(routing, scope, sequences), devices).sum(-1)
    return (frequencies_BZ * scores_BZ).sum(-1).mean()


def communication_loss(
    routing: Routing,
    *,
    devices: int,
    devices_per_token: int,
    scope: BalanceScope = "sequence",
    sequences: SequenceIndex | None = None,
) -> Tensor:
    """Sum over devices of how often tokens are sent there times their total score (V2 eqs 29-31).

    With D devices a frequency is D / (M T) times the tokens with at least one expert on it: 1 for all when every token
    reaches exactly M = ``devices_per_token`` devices and all are reached alike.
    """
    indices_BTK = _scoped(routing.indices_BTK, scope)
    batch, tokens, _ = indices_BTK.shape
    device_BTK = indices_BTK // (routing.scores_BTE.shape[-1] // devices)
    sent_BTZ = torch.zeros(batch, tokens, devices, device=indices_BTK.device).scatter_(2, device_BTK, 1.0)
    if scope == "sequence" and sequences is not None:
        frequencies_BZ = sequences.sums(sent_BTZ) * (devices / (devices_per_token * sequences.lengths_B[:, None]))
    else:
        frequencies_BZ = sent_BTZ.sum(1) * (devices / (devices_per_token * tokens))
    scores_BZ = _by_device(_mean_scores(routing, scope, sequences), devices).sum(-1)
    return (frequencies_BZ * scores_BZ).sum(-1).mean()


def sequence_loss(routing: Routing, *, sequences: SequenceIndex | None = None) -> Tensor:
    """V3's complementary sequence-wise loss (V3 eqs 17-20).

    As printed there, frequencies count the K best scores themselves, without bias or group limit, always within one
    sequence.
    """
    best_BTK = routing.scores_BTE.detach().topk(routing.indices_BTK.shape[-1], dim=-1).indices
    printed = Routing(routing.scores_BTE, best_BTK, routing.weights_BTK)
    return expert_balance_loss(printed, scope="sequence", sequences=sequences)


def balance_loss(routing: Routing, moe: MixtureOfExperts, *, sequences: SequenceIndex | None = None) -> Tensor:
    """One layer's weighted sum of the losses its spec asks for; a float32 scalar, 0 when it asks for none."""
    of_sequences, of_tokens = balance_losses(routing, moe, sequences=sequences)
    return of_sequences + of_tokens


def balance_losses(
    routing: Routing, moe: MixtureOfExperts, *, sequences: SequenceIndex | None = None
) -> tuple[Tensor, Tensor]:
    """``balance_loss`` in two parts: means over sequences, and what is taken over all tokens together.

    Parts of a batch add up to the whole with their share of its sequences for the first, and of its tokens for the
    second where that is a mean over tokens.
    """
    balance, zero = moe.router.balance, routing.scores_BTE.new_zeros(())
    scoped = zero
    if balance.expert_loss:
        scoped = scoped + balance.expert_loss * expert_balance_loss(
            routing, scope=balance.scope, counted=balance.counted, sequences=sequences
        )
    if balance.device_loss:
        scoped = scoped + balance.device_loss * device_loss(
            routing, devices=balance.devices, scope=balance.scope, sequences=sequences
        )
    if balance.communication_loss:
        scoped = scoped + balance.communication_loss * communication_loss(
            routing,
            devices=balance.devices,
            devices_per_token=balance.devices_per_token,
            scope=balance.scope,
            sequences=sequences,
        )
    of_sequences, total = (scoped, zero) if balance.scope == "sequence" else (zero, scoped)
    if balance.sequence_loss:
        of_sequences = of_sequences + balance.sequence_loss * sequence_loss(routing, sequences=sequences)
    for weight, loss in (
        (balance.importance_loss, importance_loss),
        (balance.load_loss, load_loss),
        (balance.z_loss, z_loss),
    ):
        if weight:
            total = total + weight * loss(routing)
    return of_sequences, total


def expert_counts(routing: Routing, num_experts: int) -> Tensor:
    """Pairs the router chose for each expert, dropped ones included: (E,) int64."""
    return count_indices(routing.indices_BTK.reshape(-1), num_experts)


def num_dropped_pairs(routing: Routing) -> Tensor:
    """Pairs that were dropped for lack of capacity: an int64 scalar."""
    if routing.kept_BTK is None:
        return torch.zeros((), dtype=torch.int64, device=routing.indices_BTK.device)
    lost_BTK = ~routing.kept_BTK if routing.wanted_BTK is None else routing.wanted_BTK & ~routing.kept_BTK
    return lost_BTK.sum()


def load_entropy(counts_E: Tensor) -> Tensor:
    """Entropy of the load divided by its maximum: 1 for an even load, 0 when one expert has it all, 1 for no load."""
    total = counts_E.sum()
    share_E = counts_E.double() / total.clamp(min=1)
    entropy = -torch.xlogy(share_E, share_E).sum()
    even = torch.full((), float(counts_E.numel()), dtype=torch.float64, device=counts_E.device).log()
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


def _squared_variation(values_E: Tensor) -> Tensor:
    """Variance over squared mean: 0 when all are equal."""
    return values_E.var(unbiased=False) / (values_E.mean().square() + 1e-10)


def _scoped(values_BTX: Tensor, scope: BalanceScope) -> Tensor:
    """The tensor itself, or the whole batch as one long sequence."""
    return values_BTX if scope == "sequence" else values_BTX.flatten(0, 1).unsqueeze(0)


def _frequencies(routing: Routing, scope: BalanceScope, sequences: SequenceIndex | None) -> Tensor:
    """f_i = E / (K T) times the tokens that chose expert i: (B, E), mean 1, without gradient."""
    indices_BTK, experts = _scoped(routing.indices_BTK, scope), routing.scores_BTE.shape[-1]
    batch, tokens, chosen = indices_BTK.shape
    if scope == "sequence" and sequences is not None:
        chosen_1NE = torch.zeros(batch, tokens, experts, device=indices_BTK.device)
        chosen_1NE.scatter_add_(2, indices_BTK, torch.ones_like(indices_BTK, dtype=torch.float32))
        return sequences.sums(chosen_1NE) * (experts / (chosen * sequences.lengths_B[:, None]))
    counts_BE = torch.zeros(batch, experts, dtype=torch.int64, device=indices_BTK.device)
    flat_BM = indices_BTK.reshape(batch, tokens * chosen)
    counts_BE.scatter_add_(1, flat_BM, torch.ones_like(flat_BM))
    return counts_BE.to(torch.float32) * (experts / (chosen * tokens))


def _mean_scores(routing: Routing, scope: BalanceScope, sequences: SequenceIndex | None) -> Tensor:
    """P_i, the mean over tokens of each expert's share of the scores: (B, E), sum 1."""
    scores_BTE = routing.scores_BTE / (routing.scores_BTE.sum(-1, keepdim=True) + 1e-20)
    if scope == "sequence" and sequences is not None:
        return sequences.sums(scores_BTE) / sequences.lengths_B[:, None]
    return _scoped(scores_BTE, scope).mean(1)


def _by_device(values_BE: Tensor, devices: int) -> Tensor:
    return values_BE.view(values_BE.shape[0], devices, -1)
