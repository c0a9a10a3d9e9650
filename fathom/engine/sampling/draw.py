"""Drawing the next token of every request of a step, with its log-probability.

X rows at a time, Y blocks of the vocabulary.

Ids without a token are masked first. Then logits pass, in this order: repetition penalty, presence and frequency
penalties, logit bias, bans (``min_tokens``, constraint), temperature, top-k, top-p, min-p. The random numbers are
hashes of (seed, position), so a draw depends on the row's logits, parameters and position alone: not on its neighbours,
nor on whether the request was preempted and computed anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.engine.sampling.device_draw import draw_on_device
from fathom.engine.sampling.failure import NOT_FINITE, NOTHING_ALLOWED, SamplingFailure
from fathom.engine.sampling.filters import (
    filter_top_p_min_p,
    is_unfiltered,
    masses,
    sample_unfiltered_rows,
    top_k_ids,
    weights,
)
from fathom.engine.sampling.logits_processors import SamplingMetadata, apply_logits_processors
from fathom.engine.sampling.one_row import alternatives, draw_one
from fathom.engine.sampling.softmax_rows import SoftmaxRows, softmax_rows
from fathom.engine.sampling.uniform import fresh_seed, uniform
from fathom.errors import DataError
from fathom.spec.sampling import TokenLogprob

__all__ = [
    "SamplingFailure",
    "SamplingMetadata",
    "distribution",
    "draw",
    "fresh_seed",
    "prompt_logprobs",
    "try_draw",
    "uniform",
]


def draw(
    logits_BV: Tensor, rows: Sequence[SamplingMetadata], *, unused_ids_N: Tensor | None = None
) -> list[TokenLogprob]:
    """Draw one token per row; ``try_draw`` for callers that must tell good rows from bad ones.

    Raises:
        DataError: a row has no next token; no constraint has accepted anything.
    """
    drawn = try_draw(logits_BV, rows, unused_ids_N=unused_ids_N)
    for index, token in enumerate(drawn):
        if isinstance(token, SamplingFailure):
            raise DataError(f"row {index}: {token.message}")
    return [token for token in drawn if isinstance(token, TokenLogprob)]


def try_draw(
    logits_BV: Tensor, rows: Sequence[SamplingMetadata], *, unused_ids_N: Tensor | None = None
) -> list[TokenLogprob | SamplingFailure]:
    """Draw one token per row, or say why that row has none.

    Log-probabilities are of the unfiltered softmax at temperature 1, which a trainer computes for the same sequence.
    The ids ``unused_ids_N``, which have no token, are never drawn nor named as alternatives; the softmax is over them
    too, since the trainer's is.
    Rows without filters or adjustments are drawn together, in two passes over their logits; others one by one, in about
    four. None sorts the vocabulary. On a GPU all are drawn together (``device_draw``).
    """
    logits_BV = logits_BV.float()
    if logits_BV.device.type != "cpu":
        return draw_on_device(logits_BV, rows, unused_ids_N)
    drawn: list[TokenLogprob | SamplingFailure] = []
    for looked in softmax_rows(logits_BV, unused_ids_N):
        drawn += _draw_together(looked, rows[len(drawn) : len(drawn) + len(looked.norms_X)])
    return drawn


def distribution(logits_V: Tensor, row: SamplingMetadata) -> Tensor:
    """Return the probabilities (V,) in float64 by which ``draw`` draws, written plainly and at the cost of a sort.

    Raises:
        DataError: nothing is allowed, or the constraint cannot continue.
        SpecError: ``logit_bias`` names a token outside the vocabulary.
    """
    logits_V = apply_logits_processors(logits_V.float(), row)
    best = float(logits_V.amax(-1))
    if best == -torch.inf:
        raise DataError(NOTHING_ALLOWED.message)
    params = row.params
    kept = top_k_ids(logits_V, params.top_k) if 0 < params.top_k < len(logits_V) else None
    if params.temperature == 0:
        kept = logits_V.max(-1, keepdim=True).indices
    if kept is not None:
        logits_V = torch.full_like(logits_V, -torch.inf).scatter_(0, kept, logits_V[kept])
    weights_V = filter_top_p_min_p(weights(logits_V, best, params.temperature), params)
    return weights_V / weights_V.sum()


def prompt_logprobs(
    logits_NV: Tensor, next_ids_N: Tensor, top: int, *, unused_ids_N: Tensor | None = None
) -> list[TokenLogprob]:
    """Return the log-probabilities of the tokens that did follow, each with ``top`` alternatives; see ``try_draw``."""
    logits_NV = logits_NV.float()
    looked = list(softmax_rows(logits_NV, unused_ids_N))
    norms_N = torch.cat([each.norms_X for each in looked])
    logprobs_N = logits_NV.gather(-1, next_ids_N[:, None])[:, 0] - norms_N
    rows = [row_V for each in looked for row_V in each.logits_XV]
    each = zip(rows, norms_N.tolist(), next_ids_N.tolist(), logprobs_N.tolist(), strict=True)
    return [TokenLogprob(token, logprob, alternatives(row_V, norm, top)) for row_V, norm, token, logprob in each]


def _draw_together(looked: SoftmaxRows, rows: Sequence[SamplingMetadata]) -> list[TokenLogprob | SamplingFailure]:
    logits_XV, norms, bests = looked.logits_XV, looked.norms_X.tolist(), looked.best_X.tolist()
    tokens: list[int | SamplingFailure] = [NOT_FINITE] * len(rows)
    alike: dict[float, list[int]] = {}
    for index, (row, norm) in enumerate(zip(rows, norms, strict=True)):
        if abs(norm) < torch.inf:
            if row.is_unmodified and (row.params.temperature == 0 or is_unfiltered(row.params, logits_XV.shape[-1])):
                alike.setdefault(row.params.temperature, []).append(index)
            else:
                tokens[index] = draw_one(logits_XV[index], row, bests[index])
    for temperature, chosen in alike.items():
        for index, token in zip(chosen, _draw_unfiltered(looked, rows, chosen, temperature), strict=True):
            tokens[index] = token
    ids_X = torch.tensor([token if isinstance(token, int) else 0 for token in tokens], device=logits_XV.device)
    values = logits_XV.gather(-1, ids_X[:, None])[:, 0].tolist()
    return [
        token
        if isinstance(token, SamplingFailure)
        else TokenLogprob(token, value - norm, alternatives(logits_V, norm, row.params.logprobs or 0))
        for logits_V, row, norm, token, value in zip(logits_XV, rows, norms, tokens, values, strict=True)
    ]


def _draw_unfiltered(
    looked: SoftmaxRows, rows: Sequence[SamplingMetadata], chosen: Sequence[int], temperature: float
) -> list[int]:
    """Draw for rows at which nothing but their temperature acts; each as ``draw_one`` draws it."""
    logits_XV = looked.logits_XV
    at = slice(None) if len(chosen) == len(rows) else torch.tensor(chosen, device=logits_XV.device)
    if temperature == 0:
        return [int(token) for token in logits_XV[at].max(-1).indices.tolist()]  # of equal ones the first
    numbers = [uniform(rows[index].seed, len(rows[index].drawn), 0) for index in chosen]
    if temperature == 1:
        shares_XV, masses_XY = looked.shares_XV[at], looked.masses_XY[at]
    else:
        shares_XV = weights(logits_XV[at], looked.best_X[at][:, None], temperature)
        masses_XY = masses(shares_XV)
    return [int(token) for token in sample_unfiltered_rows(shares_XV, masses_XY, numbers).tolist()]
