"""A limit on reasoning tokens, and a constraint on the answer that follows.

Z words of 32 tokens each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

from fathom.chat.output.bitmask import allow
from fathom.errors import DataError, SpecError
from fathom.tokenizer import special

if TYPE_CHECKING:
    from torch import Tensor

    from fathom.tokenizer.bpe import Tokenizer

_TAIL_CHARS = 64


class Constraint(Protocol):
    """A constraint on the tokens of one request; the engine's ``TokenConstraint`` has the same methods."""

    def fill_bitmask(self, bitmask_Z: Tensor) -> bool:
        """Write the mask of allowed tokens, or return False where all are allowed."""
        ...

    def accept(self, token_id: int) -> None:
        """Advance by the sampled token."""
        ...

    @property
    def finished(self) -> bool:
        """Whether only an end token is allowed."""
        ...

    def copy(self) -> Constraint:
        """Return an independent copy in the same state."""
        ...


class ThinkingBudget:
    """Closes the reasoning after ``max_tokens`` tokens, and applies ``inner`` to the answer after it.

    The tokens of the closing tag are forced one by one: one special token, or the tokens of the plain text where the
    vocabulary has none. After a prompt without an open think tag (``starts_in_reasoning`` false) the model may start
    its answer with one; with an ``inner`` it may not, and ``inner`` applies from the first token. ``max_tokens`` None
    sets no limit.
    """

    def __init__(
        self, tokenizer: Tokenizer, max_tokens: int | None, starts_in_reasoning: bool, inner: Constraint | None = None
    ) -> None:
        if max_tokens is not None and max_tokens < 0:
            raise SpecError("thinking_budget", f"must not be negative, got {max_tokens}", "give a number of tokens")
        self._tokenizer = tokenizer
        self._left = max_tokens
        self._inner = inner
        self._inside = starts_in_reasoning
        self._may_open = not starts_in_reasoning and inner is None
        self._forced = think_end_ids(tokenizer)
        self._tail = ""

    @property
    def thinking(self) -> bool:
        """Whether the reasoning is open."""
        return self._inside

    def fill_bitmask(self, bitmask_Z: Tensor) -> bool:
        """Allow any token within the budget, then only the next token of the closing tag."""
        if not self._inside:
            return not self._may_open and self._inner is not None and self._inner.fill_bitmask(bitmask_Z)
        if self._left != 0:
            return False
        bitmask_Z[:] = 0
        allow(bitmask_Z, self._forced[0])
        return True

    def accept(self, token_id: int) -> None:
        """Advance by the sampled token; ``DataError`` if it was not allowed."""
        if not self._inside and not self._may_open:
            if self._inner is not None:
                self._inner.accept(token_id)
            return
        if self._inside and self._left == 0:
            self._close(token_id)
            return
        text = self._tail + self._tokenizer.decode([token_id], skip_special=False, continues=True)
        if self._may_open:
            self._open(text)
            return
        self._tail = text[-_TAIL_CHARS:]
        if special.THINK_END in text:
            self._inside = False
        elif self._left is not None:
            self._left -= 1

    @property
    def finished(self) -> bool:
        """Whether only an end token is allowed; never inside the reasoning."""
        over = not self._inside and not self._may_open
        return over and self._inner is not None and self._inner.finished

    def copy(self) -> Self:
        """Return an independent copy in the same state."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._inner = None if self._inner is None else self._inner.copy()
        return other

    def _close(self, token_id: int) -> None:
        """Advance by one token of the closing tag."""
        if token_id != self._forced[0]:
            raise DataError(f"token {token_id}: the thinking budget is used up and only {self._forced[0]} is allowed")
        self._forced = self._forced[1:]
        self._inside = bool(self._forced)

    def _open(self, text: str) -> None:
        """Check whether the answer starts with an opening think tag."""
        start = text.lstrip()
        if start.startswith(special.THINK_BEGIN):
            self._inside, self._may_open, self._tail = True, False, ""
        elif special.THINK_BEGIN.startswith(start):
            self._tail = start
        else:
            self._may_open = False


def think_end_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids that close the reasoning: one special token, or those of the tag as plain text."""
    return think_tag_ids(tokenizer, special.THINK_END)


def think_tag_ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Return the ids of a text whose think tags are special tokens where the vocabulary has them as such."""
    for tag in (special.THINK_BEGIN, special.THINK_END):
        before, found, after = text.partition(tag)
        if found and tag in tokenizer.special_tokens:
            return (*think_tag_ids(tokenizer, before), tokenizer.special_tokens[tag], *think_tag_ids(tokenizer, after))
    return tuple(tokenizer.encode(text, continues=True)) if text else ()
