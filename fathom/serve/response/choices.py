"""Builders of one choice: engine outputs in; JSON chunks out while streaming, or the whole choice at the end."""

from __future__ import annotations

import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from fathom.chat.output import Channel, Delta, OutputParser
from fathom.chat.output.tools import ToolCall
from fathom.engine.request import Output
from fathom.serve.errors import ApiError
from fathom.serve.response.token_format import TokenFormatter
from fathom.spec.sampling import TokenLogprob
from fathom.tokenizer.pieces import StreamDecoder

quoted = json.encoder.encode_basestring_ascii
"""A text as an ASCII JSON string: some SSE readers split lines at other characters than line feeds."""


class Choice(ABC):
    """State that chat and text choices share: token counts and the finish reason."""

    def __init__(self, index: int, parser: OutputParser) -> None:
        self.index = index
        self.parser = parser
        self.finish_reason: str | None = None
        self.generated = self.reasoning = 0
        self.prompt_tokens = self.cached_tokens = 0

    def push(self, output: Output) -> None:
        """Add one step's output.

        Raises:
            ApiError: the engine failed at this request or cancelled it.
        """
        self.prompt_tokens, self.cached_tokens = output.prompt_tokens, output.cached_tokens
        if output.prompt_logprobs is not None:
            self.push_prompt_logprobs(output.prompt_logprobs)
        for token in output.tokens:
            self.reasoning += self.parser.thinking
            self.generated += 1
            self.push_token(token, self.parser.push_token(token.token_id))
            if self.parser.stopped is not None:
                self.close("stop")
                return
        if output.finish_reason in ("stop", "length"):
            self.push_deltas(self.parser.flush())
            self.close(output.finish_reason)
        elif output.finish_reason is not None:
            raise ApiError(500, output.error or f"the request was {output.finish_reason}", code=output.finish_reason)

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

    @abstractmethod
    def chunks(self) -> list[str]:
        """Return what is new since the last call as JSON elements of ``choices``; the last has the finish reason."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return the finished choice as an element of ``choices``."""


class ChatChoiceBuilder(Choice):
    """An assistant's message: reasoning, content and tool calls."""

    def __init__(self, index: int, parser: OutputParser, token_formatter: TokenFormatter, *, logprobs: bool) -> None:
        super().__init__(index, parser)
        self._token_formatter = token_formatter
        self._texts: dict[str, list[str]] = {"thinking": [], "content": []}
        self._calls: list[dict[str, Any]] = []
        self._problems: list[str] = []
        self._pending: list[tuple[Channel, str]] = []
        self._logprobs: list[dict[str, Any]] | None = [] if logprobs else None
        self._sent_logprobs = 0
        self._begun = self._ended = False

    def push_prompt_logprobs(self, logprobs: Sequence[TokenLogprob | None]) -> None:
        """Ignored: chat responses do not include the prompt."""

    def push_token(self, token: TokenLogprob, deltas: Sequence[Delta]) -> None:
        """Add a token and the deltas it completed."""
        if self._logprobs is not None:
            self._logprobs.append(self._token_formatter.chat_logprob(token))
        self.push_deltas(deltas)

    def push_deltas(self, deltas: Sequence[Delta]) -> None:
        """Add deltas. A tool call gets its index and id here, so that equal calls stay distinct."""
        for delta in deltas:
            if delta.tool_call is None:
                self._texts[delta.channel].append(delta.text)
                self._pending.append((delta.channel, delta.text))
            else:
                call = _call(delta.tool_call)
                self._pending.append(("tool_call", json.dumps({"index": len(self._calls), **call})))
                self._calls.append(call)
                self._problems += [f"{delta.tool_call.name}: {problem}" for problem in delta.tool_call.problems]

    def close(self, reason: str) -> None:
        """Set the finish reason, which is ``tool_calls`` where the answer stopped with calls."""
        self.finish_reason = "tool_calls" if self._calls and reason == "stop" else reason

    def chunks(self) -> list[str]:
        """Return what is new since the last call."""
        deltas = [] if self._begun else ['{"role":"assistant","content":""}']
        self._begun = True
        deltas += [_delta(channel, text) for channel, text in _joined(self._pending)]
        self._pending = []
        chunks = [self._chunk(delta) for delta in deltas]
        if self.finish_reason is not None and not self._ended:
            self._ended = True
            extra = {"fathom": {"problems": self._problems}} if self._problems else {}
            chunks.append(self._chunk(json.dumps(extra), self.finish_reason))
        return chunks

    def to_json(self) -> dict[str, Any]:
        """Return the finished choice."""
        thinking, content = ("".join(self._texts[channel]) for channel in ("thinking", "content"))
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content if content or not self._calls else None,
            "refusal": None,
            "reasoning_content": thinking or None,
            "reasoning": thinking or None,
        }
        if self._calls:
            message["tool_calls"] = self._calls
        if self._problems:
            message["fathom"] = {"problems": self._problems}
        return {
            "index": self.index,
            "message": message,
            "logprobs": None if self._logprobs is None else {"content": self._logprobs, "refusal": None},
            "finish_reason": self.finish_reason,
        }

    def _chunk(self, delta: str, reason: str | None = None) -> str:
        logprobs = "null"
        if self._logprobs is not None and self._sent_logprobs < len(self._logprobs) and "role" not in delta[:8]:
            logprobs = json.dumps({"content": self._logprobs[self._sent_logprobs :], "refusal": None})
            self._sent_logprobs = len(self._logprobs)
        ended = "null" if reason is None else f'"{reason}"'
        return f'{{"index":{self.index},"delta":{delta},"logprobs":{logprobs},"finish_reason":{ended}}}'


class CompletionChoiceBuilder(Choice):
    """A text completion, which starts with its prompt where ``echo`` is given."""

    def __init__(
        self,
        index: int,
        parser: OutputParser,
        token_formatter: TokenFormatter,
        decoder: StreamDecoder,
        *,
        prompt_ids: Sequence[int],
        echo: str | None = None,
        logprobs: bool = False,
        prompt_only: bool = False,
    ) -> None:
        super().__init__(index, parser)
        self._token_formatter, self._decoder, self._prompt_only = token_formatter, decoder, prompt_only
        self._prompt_ids = prompt_ids
        self._pending = echo or ""
        self._texts = [self._pending]
        self._echo = echo is not None
        self._with_logprobs = logprobs
        self._offset = 0 if echo is None else len(echo)
        self._columns: dict[str, list[Any]] = _columns()
        self._unsent: dict[str, list[Any]] = _columns()
        self._ended = False

    def push_prompt_logprobs(self, logprobs: Sequence[TokenLogprob | None]) -> None:
        """Add the log-probabilities of the prompt, which ``echo`` returns."""
        offset, decoder = 0, self._token_formatter.decoder()
        for token_id, entry in zip(self._prompt_ids, logprobs, strict=True):
            self._add_logprob(*self._token_formatter.text_logprob(token_id, entry), offset)
            offset += len(decoder.push(token_id))

    def push_token(self, token: TokenLogprob, deltas: Sequence[Delta]) -> None:
        """Add a token and the deltas it completed."""
        if self._prompt_only:
            self.generated = 0
            return
        if self._with_logprobs:
            self._add_logprob(*self._token_formatter.text_logprob(token.token_id, token), self._offset)
            self._offset += len(self._decoder.push(token.token_id))
        self.push_deltas(deltas)

    def push_deltas(self, deltas: Sequence[Delta]) -> None:
        """Add deltas."""
        if not self._prompt_only:
            text = "".join(delta.text for delta in deltas)
            self._texts.append(text)
            self._pending += text

    def chunks(self) -> list[str]:
        """Return what is new since the last call."""
        ends = self.finish_reason is not None and not self._ended
        if not self._pending and not ends and not self._unsent["tokens"]:
            return []
        logprobs = json.dumps(self._unsent) if self._with_logprobs and self._unsent["tokens"] else "null"
        reason = f'"{self.finish_reason}"' if ends else "null"
        text, self._pending, self._unsent, self._ended = self._pending, "", _columns(), self._ended or ends
        return [f'{{"index":{self.index},"text":{quoted(text)},"logprobs":{logprobs},"finish_reason":{reason}}}']

    def to_json(self) -> dict[str, Any]:
        """Return the finished choice."""
        return {
            "index": self.index,
            "text": "".join(self._texts),
            "logprobs": self._columns if self._with_logprobs else None,
            "finish_reason": self.finish_reason,
        }

    def _add_logprob(self, token: str, logprob: float | None, top: dict[str, float] | None, offset: int) -> None:
        for columns in (self._columns, self._unsent):
            columns["tokens"].append(token)
            columns["token_logprobs"].append(logprob)
            columns["top_logprobs"].append(top)
            columns["text_offset"].append(offset)


def _columns() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _delta(channel: Channel, text: str) -> str:
    """Return the JSON of a chunk's ``delta``; ``text`` is the text of its channel, or a call's JSON."""
    if channel == "tool_call":
        return f'{{"tool_calls":[{text}]}}'
    value = quoted(text)
    if channel == "thinking":
        return f'{{"reasoning_content":{value},"reasoning":{value}}}'
    return f'{{"content":{value}}}'


def _joined(pending: Sequence[tuple[Channel, str]]) -> list[tuple[Channel, str]]:
    """Join adjacent texts of one channel; calls stay one each."""
    if len(pending) < 2:
        return list(pending)
    joined: list[tuple[Channel, str]] = []
    for channel, text in pending:
        if joined and channel != "tool_call" and joined[-1][0] == channel:
            joined[-1] = (channel, joined[-1][1] + text)
        else:
            joined.append((channel, text))
    return joined
