"""Builders of one choice from the engine's outputs, and the parts of an assistant's answer in their order."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fathom.chat.output import Channel, Delta, OutputParser
from fathom.chat.output.tools import ToolCall
from fathom.engine.request import Output
from fathom.serve.errors import ApiError
from fathom.serve.response.token_format import TokenFormatter
from fathom.spec.sampling import TokenLogprob


class Choice(ABC):
    """State that chat and text choices share: token counts and the finish reason."""

    def __init__(self, index: int, parser: OutputParser) -> None:
        self.index = index
        self.parser = parser
        self.finish_reason: str | None = None
        self.generated = self.reasoning = 0
        self.prompt_tokens = self.cached_tokens = 0
        self.inside_reasoning = False
        """Whether the latest token was generated inside the reasoning."""

    def push(self, output: Output) -> None:
        """Add one step's output.

        Raises:
            ApiError: the engine failed at this request or cancelled it.
        """
        self.prompt_tokens, self.cached_tokens = output.prompt_tokens, output.cached_tokens
        if output.prompt_logprobs is not None:
            self.push_prompt_logprobs(output.prompt_logprobs)
        for token in output.tokens:
            self.inside_reasoning = self.parser.thinking
            self.reasoning += self.inside_reasoning
            self.generated += 1
            self.push_token(token, self.parser.push_token(token.token_id))
            if self.complete:
                self.close("stop")
                return
        if output.finish_reason in ("stop", "length"):
            self.push_deltas(self.parser.flush())
            self.close(output.finish_reason)
        elif output.finish_reason is not None:
            raise ApiError(500, output.error or f"the request was {output.finish_reason}", code=output.finish_reason)

    @property
    def complete(self) -> bool:
        """Whether the choice ends here, whatever the engine generates next."""
        return self.parser.stopped is not None

    def close(self, reason: str) -> None:
        """Set the finish reason."""
        self.finish_reason = reason

    @abstractmethod
    def push_prompt_logprobs(self, logprobs: Sequence[TokenLogprob | None]) -> None:
        """Add the log-probabilities of the prompt."""

    @abstractmethod
    def push_token(self, token: TokenLogprob, deltas: Sequence[Delta]) -> None:
        """Add a token and the deltas it completed."""

    @abstractmethod
    def push_deltas(self, deltas: Sequence[Delta]) -> None:
        """Add deltas, as those that were held back until the end."""


@dataclass(slots=True)
class AnswerPart:
    """A run of reasoning or of content, or one tool call.

    ``index`` is its place in the answer; of a call, ``call_index`` is its place among the calls and ``call_id`` is
    unique. ``logprobs`` are those of the content's tokens, where asked for.
    """

    channel: Channel
    index: int
    pieces: list[str] = field(default_factory=list)
    call: ToolCall | None = None
    call_index: int = 0
    call_id: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces)


class AssistantAnswer(Choice):
    """An assistant's message: reasoning, content and tool calls as parts in the order they were generated.

    With ``single_call`` it ends after its first call.
    """

    def __init__(
        self,
        index: int,
        parser: OutputParser,
        token_formatter: TokenFormatter,
        *,
        logprobs: bool,
        single_call: bool = False,
    ) -> None:
        super().__init__(index, parser)
        self._single_call = single_call
        self._token_formatter = token_formatter
        self.parts: list[AnswerPart] = []
        self.problems: list[str] = []
        self.logprobs: list[dict[str, Any]] | None = [] if logprobs else None
        self._calls = 0
        self._new: list[tuple[AnswerPart, str]] = []
        self._held_logprobs: list[dict[str, Any]] = []

    @property
    def has_calls(self) -> bool:
        """Whether the answer calls tools."""
        return self._calls > 0

    @property
    def complete(self) -> bool:
        """Whether a stop string was found, or the only call that is wanted."""
        return super().complete or (self._single_call and self.has_calls)

    def text(self, channel: Channel) -> str:
        """Return the joined text of a channel."""
        return "".join([part.text for part in self.parts if part.channel == channel])

    def push_prompt_logprobs(self, logprobs: Sequence[TokenLogprob | None]) -> None:
        """Ignored: an answer does not include the prompt."""

    def push_token(self, token: TokenLogprob, deltas: Sequence[Delta]) -> None:
        """Add a token and the deltas it completed."""
        if self.logprobs is not None:
            entry = self._token_formatter.chat_logprob(token)
            self.logprobs.append(entry)
            if not self.inside_reasoning:
                self._held_logprobs.append(entry)
        self.push_deltas(deltas)

    def push_deltas(self, deltas: Sequence[Delta]) -> None:
        """Add deltas. A tool call gets its index and id here, so that equal calls stay distinct."""
        for delta in deltas:
            if self._single_call and self.has_calls:
                return
            part = self.parts[-1] if self.parts else None
            if part is None or part.channel != delta.channel or delta.tool_call is not None:
                part = self._next_part(delta)
            if delta.tool_call is None:
                part.pieces.append(delta.text)
            if delta.channel == "content":
                part.logprobs += self._held_logprobs
            self._held_logprobs.clear()
            self._new.append((part, delta.text))

    def take_new(self) -> list[tuple[AnswerPart, str]]:
        """Return each part with what is new in it since the last call; a call comes whole, with an empty text."""
        new, self._new = self._new, []
        if len(new) < 2:
            return new
        joined: list[tuple[AnswerPart, str]] = []
        for part, text in new:
            if joined and joined[-1][0] is part:
                joined[-1] = (part, joined[-1][1] + text)
            else:
                joined.append((part, text))
        return joined

    def _next_part(self, delta: Delta) -> AnswerPart:
        part = AnswerPart(delta.channel, len(self.parts), call=delta.tool_call)
        if delta.tool_call is not None:
            part.call_index, part.call_id = self._calls, uuid.uuid4().hex[:24]
            self._calls += 1
            self.problems += [f"{delta.tool_call.name}: {problem}" for problem in delta.tool_call.problems]
        self.parts.append(part)
        return part
