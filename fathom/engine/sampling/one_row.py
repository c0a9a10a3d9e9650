"""Drawing the next token of one row, and the likeliest tokens beside it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fathom.engine.sampling.failure import NOTHING_ALLOWED, SamplingFailure
from fathom.engine.sampling.filters import sample_filtered, top_k_ids
from fathom.engine.sampling.logits_processors import SamplingMetadata, apply_logits_processors
from fathom.engine.sampling.uniform import uniform
from fathom.errors import FathomError


def draw_one(logits_V: Tensor, row: SamplingMetadata, best: float) -> int | SamplingFailure:
    """Return the token that a row draws, or why it has none; ``best`` is its highest logit."""
    if not row.is_unmodified:
        try:
            logits_V = apply_logits_processors(logits_V, row)
        except FathomError as error:
            return SamplingFailure("request", str(error))
        best = float(logits_V.amax(-1))
        if best == -torch.inf:
            return NOTHING_ALLOWED
    if row.params.temperature == 0:
        return int(logits_V.max(-1).indices)  # of equal ones the first
    return sample_filtered(logits_V, best, row.params, partial(uniform, row.seed, len(row.drawn)))


def alternatives(logits_V: Tensor, norm: float, count: int) -> tuple[tuple[int, float], ...]:
    """Return the likeliest tokens with their log-probabilities."""
    if count == 0:
        return ()
    ids = top_k_ids(logits_V, min(count, len(logits_V)))
    best = zip(ids.tolist(), logits_V[ids].tolist(), strict=True)
    return tuple((token, logit - norm) for token, logit in best if logit > -torch.inf)
