"""Entropy of a linear head's distributions without ever holding more than one chunk of logits.

Dimensions: N tokens, D hidden size, V vocabulary, C tokens of one chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.kernels.cross_entropy import cast_for_autocast
from fathom.kernels.elementwise import accumulation_dtype


@torch.no_grad()
def linear_entropy(hidden_ND: Tensor, weight_VD: Tensor, *, chunk_tokens: int) -> Tensor:
    """Entropy in nats of each token's distribution under ``hidden @ weight.T``, float32 or wider; has no gradient.

    A chunk's logits and their exponentials are alive together: 2 x ``chunk_tokens`` x V numbers at most.
    """
    hidden_ND, weight_VD = cast_for_autocast(hidden_ND, weight_VD)
    entropy_N = hidden_ND.new_empty(hidden_ND.shape[0], dtype=accumulation_dtype(hidden_ND))
    for start in range(0, hidden_ND.shape[0], chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        entropy_N[rows] = _entropy(torch.mm(hidden_ND[rows], weight_VD.t()))
    return entropy_N


def _entropy(logits_CV: Tensor) -> Tensor:
    """log Z - sum of e x / Z, x being the logits below their maximum and e their exponentials; overwrites them."""
    below_CV = logits_CV.to(accumulation_dtype(logits_CV))
    below_CV.sub_(below_CV.amax(1, keepdim=True))
    exponent_CV = below_CV.exp()
    sum_C = exponent_CV.sum(1)
    return sum_C.log() - exponent_CV.mul_(below_CV).sum(1) / sum_C
