"""Entropy of a linear head's distributions without ever holding more than one chunk of logits.

X tokens of one chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.kernels.cross_entropy import cast_for_autocast
from fathom.kernels.products import product
from fathom.kernels.tensors import accumulation_dtype


@torch.no_grad()
def linear_entropy(hidden_ND: Tensor, weight_VD: Tensor, *, chunk_tokens: int) -> Tensor:
    """Entropy in nats of each token's distribution under ``hidden @ weight.T``, float32 or wider; has no gradient.

    A chunk's logits and their exponentials are alive together: 2 x ``chunk_tokens`` x V numbers at most.
    """
    hidden_ND, weight_VD = cast_for_autocast(hidden_ND, weight_VD)
    entropy_N = hidden_ND.new_empty(hidden_ND.shape[0], dtype=accumulation_dtype(hidden_ND))
    for start in range(0, hidden_ND.shape[0], chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        entropy_N[rows] = _entropy(product(hidden_ND[rows], weight_VD.t()))
    return entropy_N


def _entropy(logits_XV: Tensor) -> Tensor:
    """log Z - sum of e x / Z, x being the logits below their maximum and e their exponentials; overwrites them."""
    below_XV = logits_XV.to(accumulation_dtype(logits_XV))
    below_XV.sub_(below_XV.amax(1, keepdim=True))
    exponent_XV = below_XV.exp()
    sum_X = exponent_XV.sum(1)
    return sum_X.log() - exponent_XV.mul_(below_XV).sum(1) / sum_X
