"""The log-sum-exp of rows of logits, and what drawing from them needs.

X rows at a time, Y blocks of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.engine.sampling.filters import masses, weights

_TOGETHER = 1 << 18  # logits


@dataclass(frozen=True, slots=True)
class SoftmaxRows:
    """Rows that were looked at together.

    Their logits, minus infinity at unused ids, the best of these (X,), the exponentials of how far the others are below
    them (X, V), the masses of these (X, Y), and the logarithms of the sums of exponentials, unused ids included, (X,)
    in float64.
    """

    logits_XV: Tensor
    best_X: Tensor
    shares_XV: Tensor
    masses_XY: Tensor
    norms_X: Tensor


def softmax_rows(logits_BV: Tensor, unused_ids_N: Tensor | None) -> Iterator[SoftmaxRows]:
    """Look at as many rows at a time as stay in a core's cache, on a GPU at all; each holds until the next."""
    size, vocab = logits_BV.shape
    together = min(max(_TOGETHER // vocab, 1), size) if logits_BV.device.type == "cpu" else size
    room_XV = logits_BV.new_empty(together, vocab)
    for start in range(0, size, together):
        logits_XV = logits_BV[start : start + together]
        unused_X = None
        if unused_ids_N is not None:
            unused_X = logits_XV[:, unused_ids_N].double().logsumexp(-1)
            logits_XV = logits_XV.index_fill(-1, unused_ids_N, -torch.inf)
        best_X = logits_XV.amax(-1)
        shares_XV = weights(logits_XV, best_X[:, None], 1, out=room_XV[: len(logits_XV)])
        masses_XY = masses(shares_XV)
        norms_X = masses_XY.sum(-1).log_().add_(best_X)
        if unused_X is not None:
            norms_X = torch.logaddexp(norms_X, unused_X)
        yield SoftmaxRows(logits_XV, best_X, shares_XV, masses_XY, norms_X)
