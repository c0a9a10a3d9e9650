"""A constraint that is one of two, as the first token decides.

W words of 32 tokens each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from fathom.chat.output.bitmask import allows
from fathom.chat.output.budget import Constraint

if TYPE_CHECKING:
    from torch import Tensor


class Either:
    """Applies ``answer``, or ``call`` where the first token is one that ``call`` allows and ``answer`` does not."""

    def __init__(self, answer: Constraint, call: Constraint) -> None:
        self._answer, self._call = answer, call
        self._chosen: Constraint | None = None
        self._mask_W: Tensor | None = None
        """What ``answer`` allows as the first token."""

    def fill_bitmask(self, bitmask_W: Tensor) -> bool:
        """Write the mask of the chosen constraint, at the start the tokens of both."""
        if self._chosen is not None:
            return self._chosen.fill_bitmask(bitmask_W)
        if not self._answer.fill_bitmask(bitmask_W):
            self._mask_W = None
            return False
        self._mask_W = bitmask_W.clone()
        if not self._call.fill_bitmask(bitmask_W):
            return False
        bitmask_W |= self._mask_W
        return True

    def accept(self, token_id: int) -> None:
        """Advance by the sampled token; ``DataError`` if it was not allowed."""
        if self._chosen is None:
            in_answer = self._mask_W is None or allows(self._mask_W, token_id)
            self._chosen, self._mask_W = (self._answer if in_answer else self._call), None
        self._chosen.accept(token_id)

    @property
    def finished(self) -> bool:
        """Whether only an end token is allowed."""
        return self._chosen is not None and self._chosen.finished

    def copy(self) -> Self:
        """Return an independent copy in the same state."""
        other = type(self)(self._answer.copy(), self._call.copy())
        if self._chosen is not None:
            other._chosen = other._answer if self._chosen is self._answer else other._call
        other._mask_W = None if self._mask_W is None else self._mask_W.clone()
        return other
