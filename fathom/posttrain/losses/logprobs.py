"""Log-probabilities and entropies of tokens from hidden states, never all logits at once."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fathom.kernels import linear_cross_entropy, linear_entropy, linear_token_loss
from fathom.spec import check


def chosen_logprobs(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, temperature: float = 1.0, chunk_tokens: int
) -> Tensor:
    """Log-probability of each target under softmax(hidden @ weight.T / temperature), float32 or wider, with gradient.

    Targets of -100 are 0. At most ``chunk_tokens`` x V logits are alive, forward or backward.
    """
    return -linear_cross_entropy(_at(hidden_ND, temperature), weight_VD, targets_N, chunk_tokens=chunk_tokens)


def entropy(hidden_ND: Tensor, weight_VD: Tensor, *, temperature: float = 1.0, chunk_tokens: int) -> Tensor:
    """Entropy in nats of softmax(hidden @ weight.T / temperature), float32 or wider, without gradient."""
    return linear_entropy(_at(hidden_ND, temperature), weight_VD, chunk_tokens=chunk_tokens)


def token_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    loss: Callable[[Tensor, slice], Tensor],
    *,
    temperature: float = 1.0,
    chunk_tokens: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """A sum over tokens of functions of their own log-probabilities, with gradient; then these, and entropies, without.

    ``loss`` gets the log-probabilities of a chunk and the tokens they are of, and returns their part of the sum. Each
    logit is computed once, where ``chosen_logprobs`` and ``entropy`` compute it three times before the update is done.
    """
    return linear_token_loss(_at(hidden_ND, temperature), weight_VD, targets_N, loss, chunk_tokens=chunk_tokens)


def _at(hidden_ND: Tensor, temperature: float) -> Tensor:
    check.positive("temperature", temperature)
    return hidden_ND if temperature == 1 else hidden_ND / temperature
