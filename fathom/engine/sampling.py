"""Drawing the next token of every request of a step, with its log-probability.

Shapes: B rows (one per request and position), N positions, V vocabulary.

What happens to logits, in this order: repetition penalty, presence and frequency penalties, logit bias, bans
(``min_tokens``, ids without a token, constraint), temperature, top-k, top-p, min-p. The random numbers are hashes of
(seed, position), so a draw depends on the row's logits, parameters and position alone: not on its neighbours, nor on
whether the request was preempted and computed anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fathom.engine.adjusting import Row, adjust
from fathom.engine.selecting import keep, leading, select, weights
from fathom.engine.uniform import fresh_seed, uniform
from fathom.errors import DataError, FathomError
from fathom.spec.sampling import TokenLogprob

__all__ = ["Row", "RowFailure", "distribution", "draw", "fresh_seed", "prompt_logprobs", "try_draw", "uniform"]


@dataclass(frozen=True, slots=True)
class RowFailure:
    """Why one row has no next token: its logits are not finite, nothing is allowed, or its request's fields."""

    kind: Literal["logits", "nothing allowed", "request"]
    message: str


def draw(logits_BV: Tensor, rows: Sequence[Row]) -> list[TokenLogprob]:
    """Draw one token per row; ``try_draw`` for callers that must tell good rows from bad ones.

    Raises:
        DataError: a row has no next token; no constraint was told anything.
    """
    drawn = try_draw(logits_BV, rows)
    for index, token in enumerate(drawn):
        if isinstance(token, RowFailure):
            raise DataError(f"row {index}: {token.message}")
    return [token for token in drawn if isinstance(token, TokenLogprob)]


def try_draw(logits_BV: Tensor, rows: Sequence[Row]) -> list[TokenLogprob | RowFailure]:
    """Draw one token per row, or say why that row has none.

    Log-probabilities are of the unfiltered softmax at temperature 1, which a trainer computes for the same sequence.
    Rows that are greedy and plain cost two passes over their logits, drawn ones about four; none sorts the vocabulary.
    """
    logits_BV = logits_BV.float()
    best_B = logits_BV.amax(-1)
    norms, bests = _log_sums(logits_BV, best_B).tolist(), best_B.tolist()
    drawn: list[TokenLogprob | RowFailure] = []
    for logits_V, row, norm, best in zip(logits_BV, rows, norms, bests, strict=True):
        token = _draw_one(logits_V, row, best) if abs(norm) < torch.inf else _NOT_FINITE
        if isinstance(token, RowFailure):
            drawn.append(token)
        else:
            top = _alternatives(logits_V, norm, row.params.logprobs or 0)
            drawn.append(TokenLogprob(token, float(logits_V[token]) - norm, top))
    return drawn


def distribution(logits_V: Tensor, row: Row) -> Tensor:
    """Return the probabilities (V,) in float64 by which ``draw`` draws, written plainly and at the cost of a sort.

    Raises:
        DataError: nothing is allowed, or the constraint cannot go on.
        SpecError: ``logit_bias`` names a token outside the vocabulary.
    """
    logits_V = adjust(logits_V.float(), row)
    best = float(logits_V.amax(-1))
    if best == -torch.inf:
        raise DataError(_NOTHING.message)
    params = row.params
    kept = leading(logits_V, params.top_k) if 0 < params.top_k < len(logits_V) else None
    if params.temperature == 0:
        kept = logits_V.max(-1, keepdim=True).indices
    if kept is not None:
        logits_V = torch.full_like(logits_V, -torch.inf).scatter_(0, kept, logits_V[kept])
    weights_V = keep(weights(logits_V, best, params.temperature), params)
    return weights_V / weights_V.sum()


def prompt_logprobs(logits_NV: Tensor, next_ids_N: Tensor, top: int) -> list[TokenLogprob]:
    """Return what the model thought of the tokens that did follow, each with ``top`` alternatives."""
    logits_NV = logits_NV.float()
    norms_N = _log_sums(logits_NV, logits_NV.amax(-1))
    logprobs_N = logits_NV.gather(-1, next_ids_N[:, None])[:, 0] - norms_N
    each = zip(logits_NV, norms_N.tolist(), next_ids_N.tolist(), logprobs_N.tolist(), strict=True)
    return [TokenLogprob(token, logprob, _alternatives(row_V, norm, top)) for row_V, norm, token, logprob in each]


_NOT_FINITE = RowFailure("logits", "the model's logits are not finite; its weights or its cache are damaged")
_NOTHING = RowFailure(
    "nothing allowed",
    "no token is allowed here: constraint, min_tokens and logit_bias forbid all of them together; "
    "lower min_tokens or loosen the constraint",
)


def _draw_one(logits_V: Tensor, row: Row, best: float) -> int | RowFailure:
    if not row.plain:
        try:
            logits_V = adjust(logits_V, row)
        except FathomError as error:
            return RowFailure("request", str(error))
        best = float(logits_V.amax(-1))
        if best == -torch.inf:
            return _NOTHING
    if row.params.temperature == 0:
        return int(logits_V.max(-1).indices)  # of equal ones the first
    return select(logits_V, best, row.params, partial(uniform, row.seed, len(row.drawn)))


def _log_sums(logits_BV: Tensor, best_B: Tensor) -> Tensor:
    """Return the logarithm of each row's sum of exponentials, one row at a time in one row's memory."""
    room_V = torch.empty_like(logits_BV[0])
    sums = [torch.sub(row_V, best, out=room_V).exp_().sum() for row_V, best in zip(logits_BV, best_B, strict=True)]
    return torch.stack(sums).log() + best_B


def _alternatives(logits_V: Tensor, norm: float, count: int) -> tuple[tuple[int, float], ...]:
    if count == 0:
        return ()
    ids = leading(logits_V, min(count, len(logits_V)))
    return tuple((token, logit - norm) for token, logit in zip(ids.tolist(), logits_V[ids].tolist(), strict=True))
