"""How long a model may think, and what its answer must obey once it has.

W words of 32 tokens each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

from fathom.errors import DataError, SpecError
from fathom.tokenizer import special

if TYPE_CHECKING:
    from torch import Tensor

    from fathom.tokenizer.bpe import Tokenizer

_TAIL_CHARS = 64


class Constraint(Protocol):
    """What restricts the tokens of one request; the engine's protocol has the same methods."""

    def fill_bitmask(self, bitmask_W: Tensor) -> bool:
        """Write the mask of allowed tokens, or return False where nothing is forbidden."""
        ...

    def accept(self, token_id: int) -> None:
        """Take the token that was drawn."""
        ...

    @property
    def finished(self) -> bool:
        """Whether only the end may come."""
        ...

    def copy(self) -> Constraint:
        """Return one in the same state that goes its own way."""
        ...


class ThinkingBudget:
    """Closes the reasoning after ``max_tokens`` tokens, and hands the answer over to ``inner``.

    The tokens of the closing tag are forced one by one: one special token, or the plain text's tokens where the
    vocabulary has none. ``inner`` restricts nothing before the reasoning has ended. After a prompt that leaves it
    closed (``starts_in_reasoning`` false) the model may open it at its beginning; where there is an ``inner``, that
    decides from the first token, and reasoning never comes. ``max_tokens`` None sets no limit.
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

    def fill_bitmask(self, bitmask_W: Tensor) -> bool:
        """Allow the next token of the closing tag alone once the budget is spent; before, anything."""
        if not self._inside:
            return not self._may_open and self._inner is not None and self._inner.fill_bitmask(bitmask_W)
        if self._left != 0:
            return False
        word, bit = divmod(self._forced[0], 32)
        bitmask_W[:] = 0
        bitmask_W[word] = (1 << bit) if bit < 31 else -(1 << 31)
        return True

    def accept(self, token_id: int) -> None:
        """Take the token that was drawn; ``DataError`` if it was not allowed."""
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
        """Whether only the end may come: never while thinking."""
        over = not self._inside and not self._may_open
        return over and self._inner is not None and self._inner.finished

    def copy(self) -> Self:
        """Return one in the same state that goes its own way."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._inner = None if self._inner is None else self._inner.copy()
        return other

    def _close(self, token_id: int) -> None:
        """Take one token of the closing tag."""
        if token_id != self._forced[0]:
            raise DataError(f"token {token_id}: the budget for thinking is spent, and only {self._forced[0]} may come")
        self._forced = self._forced[1:]
        self._inside = bool(self._forced)

    def _open(self, text: str) -> None:
        """See whether the answer begins with reasoning."""
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
