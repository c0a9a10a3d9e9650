"""A constraint that is one of two, as the first token decides.

Z words of 32 tokens each.
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
        self._mask_Z: Tensor | None = None
        """What ``answer`` allows as the first token."""

    def fill_bitmask(self, bitmask_Z: Tensor) -> bool:
        """Write the mask of the chosen constraint, at the start the tokens of both."""
        if self._chosen is not None:
            return self._chosen.fill_bitmask(bitmask_Z)
        if not self._answer.fill_bitmask(bitmask_Z):
            self._mask_Z = None
            return False
        self._mask_Z = bitmask_Z.clone()
        if not self._call.fill_bitmask(bitmask_Z):
            return False
        bitmask_Z |= self._mask_Z
        return True

    def accept(self, token_id: int) -> None:
        """Advance by the sampled token; ``DataError`` if it was not allowed."""
        if self._chosen is None:
            in_answer = self._mask_Z is None or allows(self._mask_Z, token_id)
            self._chosen, self._mask_Z = (self._answer if in_answer else self._call), None
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
        other._mask_Z = None if self._mask_Z is None else self._mask_Z.clone()
        return other
