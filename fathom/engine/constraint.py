"""Constraints on the next token: the interface of grammars, thinking budgets and the like.

Z words of 32 tokens each.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class TokenConstraint(Protocol):
    """One request's rule of which tokens may come next; it accepts every sampled token.

    Before the first token and after each, ``fill_bitmask`` may be called any number of times and changes nothing.
    """

    def fill_bitmask(self, bitmask_Z: Tensor) -> bool:
        """Write what may come next into int32 ``bitmask_Z`` on the CPU, token i at bit i % 32 of word i // 32.

        1 is allowed; all are 0 before. False says that nothing is forbidden now and the words were left alone. There
        are ceil(V / 32) words, V the model's vocabulary: ids without a token are not allowed.

        Raises:
            DataError: the rule became too expensive to follow.
        """
        ...

    def accept(self, token_id: int) -> None:
        """Advance by a sampled token; ``DataError`` if it was not allowed, and the state is then unchanged."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the answer is complete: only its end may come."""
        ...

    def copy(self) -> TokenConstraint:
        """Return an independent copy in the same state, for drafts and for starting anew."""
        ...


def bitmask_words(vocab_size: int) -> int:
    """Return the words of a bitmask."""
    return (vocab_size + 31) // 32


def allowed_tokens(constraint: TokenConstraint, vocab_size: int) -> Tensor | None:
    """Return which tokens may come next as booleans (V,) on the CPU, or None where all may."""
    bitmask_Z = torch.zeros(bitmask_words(vocab_size), dtype=torch.int32)
    if not constraint.fill_bitmask(bitmask_Z):
        return None
    bits = np.unpackbits(bitmask_Z.numpy().view(np.uint8), bitorder="little", count=vocab_size)
    return torch.from_numpy(bits).bool()
