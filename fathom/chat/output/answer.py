"""Parser of generated tokens into reasoning, content and tool calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fathom.chat.output.stops import StopStrings
from fathom.chat.output.thinking import ReasoningParser, ends_inside_reasoning
from fathom.chat.output.tools import MARKERS, ToolCall, ToolCallParser
from fathom.tokenizer import special

if TYPE_CHECKING:
    from fathom.tokenizer.bpe import Tokenizer

Channel = Literal["thinking", "content", "tool_call"]


@dataclass(frozen=True, slots=True)
class Delta:
    """A part of an answer: ``text`` of the reasoning or the content, or one complete ``tool_call``."""

    channel: Channel
    text: str = ""
    tool_call: ToolCall | None = None


class OutputParser:
    """Parses one answer incrementally, by tokens or by pieces of text.

    After ``prompt_ids`` that end with an open think tag the answer starts inside its reasoning; ``starts_in_reasoning``
    says so of a prompt that ends further inside. With ``continues`` the answer goes on with a text that the prompt
    begins: white space at its start is part of it, and a think tag there is not. ``tools`` are the
    available tools in OpenAI's format; without any, tool calls are not parsed. ``stops`` apply to the content only, not
    to reasoning or the arguments of calls. Special tokens are hidden, except those that mark reasoning and calls. With
    ``plain`` the text is not parsed: no reasoning, no calls.

    The joined deltas of a channel do not depend on how the answer is split into pieces. Once ``stopped``, there are no
    further deltas: the caller should cancel the request.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int] = (),
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        stops: Sequence[str] = (),
        include_stop: bool = False,
        plain: bool = False,
        starts_in_reasoning: bool = False,
        continues: bool = False,
    ) -> None:
        shown = () if plain else (special.THINK_BEGIN, special.THINK_END, *(MARKERS if tools else ()))
        self._hidden = tokenizer.special_ids - {tokenizer.special_tokens.get(name) for name in shown}
        self._decoder = tokenizer.stream(skip_special=False, continues=plain or continues)
        inside = starts_in_reasoning or ends_inside_reasoning(tokenizer, prompt_ids)
        self._thinking = None if plain else ReasoningParser(inside, continues=continues)
        self._tools = ToolCallParser(tools) if tools and not plain else None
        self._stops = StopStrings(stops, include_stop)

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stops.found

    @property
    def thinking(self) -> bool:
        """Whether the answer is inside its reasoning."""
        return self._thinking is not None and self._thinking.inside

    def push_token(self, token_id: int) -> list[Delta]:
        """Add one generated token; return the deltas it completes."""
        return [] if token_id in self._hidden else self.push(self._decoder.push(token_id))

    def push(self, text: str) -> list[Delta]:
        """Add a piece of text; return the deltas it completes."""
        if self.stopped is not None or not text:
            return []
        parts = [("content", text)] if self._thinking is None else self._thinking.push(text)
        return self._routed(parts)

    def flush(self) -> list[Delta]:
        """End the answer: return what was held back."""
        deltas = self.push(self._decoder.flush())
        if self._thinking is not None and self.stopped is None:
            deltas += self._routed(self._thinking.flush())
        if self._tools is not None and self.stopped is None:
            deltas += self._ended(self._tools.flush())
        rest = self._stops.flush()
        return deltas + ([Delta("content", rest)] if rest else [])

    def _routed(self, parts: Sequence[tuple[str, str]]) -> list[Delta]:
        deltas: list[Delta] = []
        for channel, text in parts:
            if channel == "thinking":
                deltas.append(Delta("thinking", text))
            else:
                deltas += self._ended([text] if self._tools is None else self._tools.push(text))
        return deltas

    def _ended(self, parts: Sequence[str | ToolCall]) -> list[Delta]:
        """Apply stop strings to content; a call ends a partial one."""
        deltas: list[Delta] = []
        for part in parts:
            if self.stopped is not None:
                break
            text = self._stops.flush() if isinstance(part, ToolCall) else self._stops.push(part)[0]
            if text:
                deltas.append(Delta("content", text))
            if isinstance(part, ToolCall):
                deltas.append(Delta("tool_call", tool_call=part))
        return deltas
