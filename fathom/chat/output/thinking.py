"""Parser of reasoning: the text between ``<think>`` and ``</think>``."""

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
    """Splits an incremental answer into thinking and content.

    Reasoning is only recognised at the start: a later think tag is content, and so is a closing tag without an opening
    one. White space around the tags is dropped; an answer without reasoning is unchanged. ``starts_in_reasoning`` says
    that the prompt ends with an open tag; a model may repeat it. With ``continues`` the prompt ends inside a text: the
    answer's white space is part of it, and there is no tag to open. The text of each channel does not depend on how the
    answer is split into pieces.
    """

    def __init__(self, starts_in_reasoning: bool, *, continues: bool = False) -> None:
        self._channel: ReasoningChannel = "thinking" if starts_in_reasoning else "content"
        self._at_start = not continues  # only white space so far in this channel
        self._may_open = not continues
        self._held = ""

    @property
    def inside(self) -> bool:
        """Whether the reasoning is open."""
        return self._channel == "thinking"

    def push(self, text: str) -> list[tuple[ReasoningChannel, str]]:
        """Add a piece; return what it completes, in order."""
        self._held += text
        if self._may_open and not self._parse_opening_tag():
            return []
        if self._channel == "content":
            return self._content()
        return self._thinking()

    def flush(self) -> list[tuple[ReasoningChannel, str]]:
        """End the text: return what was held back."""
        self._may_open = False
        rest = self._held.lstrip() if self._at_start and self._channel == "thinking" else self._held
        self._held = ""
        return [(self._channel, rest)] if rest else []

    def _parse_opening_tag(self) -> bool:
        """Remove an opening tag at the start; return False while one may still follow."""
        start = self._held.lstrip()
        if start.startswith(special.THINK_BEGIN):
            self._channel, self._held = "thinking", start[len(special.THINK_BEGIN) :]
        elif special.THINK_BEGIN.startswith(start):
            return False
        else:
            self._at_start = self._channel == "thinking"
        self._may_open = False
        return True

    def _thinking(self) -> list[tuple[ReasoningChannel, str]]:
        if self._at_start:
            self._held = self._held.lstrip()
        thought, closed, rest = self._held.partition(special.THINK_END)
        if closed:
            self._channel, self._at_start, self._held = "content", True, rest
            thought = thought.rstrip()
            return [*([("thinking", thought)] if thought else []), *self._content()]  # type: ignore[list-item]
        safe = len(thought[: len(thought) - partial_marker_length(thought, (special.THINK_END,))].rstrip())
        self._held = thought[safe:]
        self._at_start = self._at_start and not safe
        return [("thinking", thought[:safe])] if safe else []

    def _content(self) -> list[tuple[ReasoningChannel, str]]:
        text = self._held.lstrip() if self._at_start else self._held
        self._held = ""
        self._at_start = self._at_start and not text
        return [("content", text)] if text else []


def ends_inside_reasoning(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> bool:
    """Return whether a prompt ends with an open think tag, so that the answer starts inside its reasoning."""
    tail = tokenizer.decode(prompt_ids[-_TAIL_TOKENS:], skip_special=False, continues=True)
    return tail.rstrip().endswith(special.THINK_BEGIN)
