"""Drawing on a GPU: all rows of a step together, and one read of what was drawn.

X rows, Y trials.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.engine.sampling.failure import NOT_FINITE, NOTHING_ALLOWED, SamplingFailure
from fathom.engine.sampling.filters import just_below, masses, sample_unfiltered_rows, weights
from fathom.engine.sampling.logits_processors import SamplingMetadata, apply_logits_processors
from fathom.engine.sampling.one_row import alternatives, draw_one
from fathom.engine.sampling.softmax_rows import softmax_rows
from fathom.engine.sampling.uniform import uniform
from fathom.errors import FathomError
from fathom.model.device import to_device
from fathom.spec.sampling import TokenLogprob

_TRIALS = 4
"""Trials of top-p that run before anything is read; a row that needs more draws alone, the same token."""


def draw_on_device(
    logits_XV: Tensor, rows: Sequence[SamplingMetadata], unused_ids_N: Tensor | None
) -> list[TokenLogprob | SamplingFailure]:
    """``draw.try_draw`` of float32 logits without a loop over rows that waits for the device.

    Tokens, log-probabilities and what failed are read at once, at the end. Log-probabilities of alternatives are read
    for each row that wants them.
    """
    (looked,) = softmax_rows(logits_XV, unused_ids_N)
    logits_XV, changed_XV, failures = looked.logits_XV, looked.logits_XV, dict[int, SamplingFailure]()
    for index, row in enumerate(rows):
        if row.is_unmodified:
            continue
        if changed_XV is logits_XV:
            changed_XV = logits_XV.clone()
        try:
            changed_XV[index] = apply_logits_processors(logits_XV[index], row)
        except FathomError as error:
            failures[index] = SamplingFailure("request", str(error))
    best_X1 = changed_XV.amax(-1, keepdim=True)
    ids_X, accepted_X = _drawn(changed_XV, best_X1, rows)
    values_X = logits_XV.gather(-1, ids_X[:, None])[:, 0]
    found = torch.stack([each.double() for each in (ids_X, ~accepted_X, values_X, looked.norms_X, best_X1[:, 0])])
    tokens: list[TokenLogprob | SamplingFailure] = []
    for index, (token, refused, value, norm, best) in enumerate(found.T.tolist()):
        row, drawn = rows[index], int(token)
        if not abs(norm) < torch.inf:
            tokens.append(NOT_FINITE)
        elif index in failures:
            tokens.append(failures[index])
        elif best == -torch.inf:
            tokens.append(NOTHING_ALLOWED)
        else:
            if refused:
                again = draw_one(logits_XV[index], row, float(looked.best_X[index]))
                assert isinstance(again, int)
                drawn, value = again, float(logits_XV[index, again])
            others = alternatives(logits_XV[index], norm, row.params.logprobs or 0)
            tokens.append(TokenLogprob(drawn, value - norm, others))
    return tokens


def _drawn(logits_XV: Tensor, best_X1: Tensor, rows: Sequence[SamplingMetadata]) -> tuple[Tensor, Tensor]:
    """Return each row's token, and whether top-p accepted it within the trials that were made."""
    device, vocab = logits_XV.device, logits_XV.shape[-1]
    params = [row.params for row in rows]
    greedy_X = logits_XV.max(-1).indices
    if all(each.temperature == 0 for each in params):
        return greedy_X, torch.ones_like(greedy_X, dtype=torch.bool)

    def column(values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return to_device(torch.tensor(values, dtype=dtype), device)[:, None]

    temperature_X1 = column([each.temperature or 1.0 for each in params])
    weights_XV = weights(logits_XV, best_X1, temperature_X1)
    if any(0 < each.top_k < vocab for each in params):
        weights_XV = _top_k(logits_XV, weights_XV, [each.top_k if 0 < each.top_k < vocab else vocab for each in params])
    shares = [each.top_p for each in params]
    enough_X1 = column([share if share < 1 else torch.inf for share in shares], torch.float64)
    enough_X1 = enough_X1 * masses(weights_XV).sum(-1, keepdim=True)
    if any(each.min_p > 0 for each in params):
        least_X1 = column([just_below(each.min_p) if each.min_p > 0 else -1.0 for each in params])
        weights_XV = weights_XV.where(weights_XV > least_X1, 0.0)
    trials = _TRIALS if min(shares) < 1 else 1
    numbers_YX = [[uniform(row.seed, len(row.drawn), trial) for row in rows] for trial in range(trials)]
    numbers = to_device(torch.tensor(numbers_YX, dtype=torch.float64), device)
    ids_X, accepted_X1 = _accepted(weights_XV, enough_X1, numbers)
    is_greedy_X = column([each.temperature == 0 for each in params], torch.bool)[:, 0]
    return torch.where(is_greedy_X, greedy_X, ids_X), accepted_X1[:, 0] | is_greedy_X


def _accepted(weights_XV: Tensor, enough_X1: Tensor, numbers_YX: Tensor) -> tuple[Tensor, Tensor]:
    """Draw by weight until the tokens ahead of the drawn one weigh less than is enough, as ``sample_filtered`` does."""
    places_V = torch.arange(weights_XV.shape[-1], device=weights_XV.device)
    ids_X1 = torch.zeros(len(weights_XV), 1, dtype=torch.int64, device=weights_XV.device)
    accepted_X1 = torch.zeros_like(ids_X1, dtype=torch.bool)
    for numbers_X in numbers_YX:
        drawn_X = sample_unfiltered_rows(weights_XV, masses(weights_XV), numbers_X)
        drawn_X1 = drawn_X.clamp(max=weights_XV.shape[-1] - 1)[:, None]  # beyond it where weights are not finite
        ids_X1 = torch.where(accepted_X1, ids_X1, drawn_X1)
        weight_X1 = weights_XV.gather(-1, drawn_X1)
        ahead_XV = (weights_XV > weight_X1) | ((weights_XV == weight_X1) & (places_V < drawn_X1))
        ahead_XV = weights_XV.where(ahead_XV, 0.0)
        accepted_X1 = accepted_X1 | (enough_X1 == torch.inf) | (masses(ahead_XV).sum(-1, keepdim=True) < enough_X1)
        weights_XV = torch.where(accepted_X1, weights_XV, ahead_XV)
    return ids_X1[:, 0], accepted_X1


def _top_k(logits_XV: Tensor, weights_XV: Tensor, counts: list[int]) -> Tensor:
    """Leave each row the weights of its highest logits; of equal ones the lowest ids."""
    vocab = logits_XV.shape[-1]
    most = max(count for count in counts if count < vocab)
    bits_XV = (logits_XV + 0.0).view(torch.int32).long()  # + 0.0 makes both zeros one
    ordered_XV = torch.where(bits_XV < 0, bits_XV ^ 0x7FFFFFFF, bits_XV)
    ids_XY = ((ordered_XV << 32) - torch.arange(vocab, device=logits_XV.device)).topk(most, dim=-1).indices
    count_X1 = to_device(torch.tensor(counts), logits_XV.device)[:, None]
    kept_XY = torch.arange(most, device=logits_XV.device) < count_X1
    kept_XV = torch.zeros_like(weights_XV, dtype=torch.bool).scatter_(-1, ids_XY, kept_XY)
    return weights_XV.where(kept_XV | (count_X1 == vocab), 0.0)
