"""Reasoning apart from the answer: what stands between ``<think>`` and ``</think>``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from fathom.chat.output.markers import partial_marker_length
from fathom.tokenizer import special

if TYPE_CHECKING:
    from fathom.tokenizer.bpe import Tokenizer

ReasoningChannel = Literal["thinking", "content"]
_TAIL_TOKENS = 24


class ReasoningParser:
    """Splits an answer that comes in pieces into thinking and content.

    Reasoning stands at the very beginning or nowhere: a think tag later in the answer is content, and so is a closing
    tag that nothing opened. White space around the tags belongs to them and is dropped; an answer without reasoning is
    left as it is. ``starts_in_reasoning`` says that the prompt has opened the tag already; a model that repeats it is
    forgiven. However the text is cut into pieces, each voice's text is the same.
    """

    def __init__(self, starts_in_reasoning: bool) -> None:
        self._voice: ReasoningChannel = "thinking" if starts_in_reasoning else "content"
        self._beginning = True  # only white space so far in this voice
        self._may_open = True
        self._held = ""

    @property
    def inside(self) -> bool:
        """Whether the text so far has left the reasoning open."""
        return self._voice == "thinking"

    def push(self, text: str) -> list[tuple[ReasoningChannel, str]]:
        """Take a piece and return what it settles, in order."""
        self._held += text
        if self._may_open and not self._settled_opening():
            return []
        if self._voice == "content":
            return self._content()
        return self._thinking()

    def flush(self) -> list[tuple[ReasoningChannel, str]]:
        """End the text: what was held back is text after all."""
        self._may_open = False
        rest = self._held.lstrip() if self._beginning and self._voice == "thinking" else self._held
        self._held = ""
        return [(self._voice, rest)] if rest else []

    def _settled_opening(self) -> bool:
        """Take an opening tag off the beginning; return False while one may still come."""
        start = self._held.lstrip()
        if start.startswith(special.THINK_BEGIN):
            self._voice, self._held = "thinking", start[len(special.THINK_BEGIN) :]
        elif special.THINK_BEGIN.startswith(start):
            return False
        else:
            self._beginning = self._voice == "thinking"
        self._may_open = False
        return True

    def _thinking(self) -> list[tuple[ReasoningChannel, str]]:
        if self._beginning:
            self._held = self._held.lstrip()
        thought, closed, rest = self._held.partition(special.THINK_END)
        if closed:
            self._voice, self._beginning, self._held = "content", True, rest
            thought = thought.rstrip()
            return [*([("thinking", thought)] if thought else []), *self._content()]  # type: ignore[list-item]
        safe = len(thought[: len(thought) - partial_marker_length(thought, (special.THINK_END,))].rstrip())
        self._held = thought[safe:]
        self._beginning = self._beginning and not safe
        return [("thinking", thought[:safe])] if safe else []

    def _content(self) -> list[tuple[ReasoningChannel, str]]:
        text = self._held.lstrip() if self._beginning else self._held
        self._held = ""
        self._beginning = self._beginning and not text
        return [("content", text)] if text else []


def ends_inside_reasoning(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> bool:
    """Return whether a prompt ends with an open think tag, so that the answer begins inside."""
    tail = tokenizer.decode(prompt_ids[-_TAIL_TOKENS:], skip_special=False, continues=True)
    return tail.rstrip().endswith(special.THINK_BEGIN)
