"""Choices as chat and text completions have them: JSON chunks while streaming, or the whole choice at the end."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from fathom.chat.output import Delta, OutputParser
from fathom.serve.response.answer import AnswerPart, AssistantAnswer, Choice
from fathom.serve.response.token_format import TokenFormatter
from fathom.spec.sampling import TokenLogprob
from fathom.tokenizer.pieces import StreamDecoder

quoted = json.encoder.encode_basestring_ascii
"""A text as an ASCII JSON string: some SSE readers split lines at other characters than line feeds."""


class ListedChoice(Choice, ABC):
    """A choice as an element of ``choices``, as chat and text completions have it."""

    @abstractmethod
    def chunks(self) -> list[str]:
        """Return what is new since the last call as JSON elements of ``choices``; the last has the finish reason."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return the finished choice as an element of ``choices``."""


class ChatChoiceBuilder(AssistantAnswer, ListedChoice):
    """An assistant's message as chat completions have it.

    With ``function_call`` its only call is under that name, as OpenAI's former interface has it.
    """

    def __init__(
        self,
        index: int,
        parser: OutputParser,
        token_formatter: TokenFormatter,
        *,
        logprobs: bool,
        single_call: bool = False,
        function_call: bool = False,
    ) -> None:
        single_call = single_call or function_call
        super().__init__(index, parser, token_formatter, logprobs=logprobs, single_call=single_call)
        self._function_call = function_call
        self._sent_logprobs = 0
        self._begun = self._ended = False

    def close(self, reason: str) -> None:
        """Set the finish reason, which is ``tool_calls`` or ``function_call`` where the answer stopped with calls."""
        called = "function_call" if self._function_call else "tool_calls"
        super().close(called if self.has_calls and reason == "stop" else reason)

    def chunks(self) -> list[str]:
        """Return what is new since the last call."""
        deltas = [] if self._begun else ['{"role":"assistant","content":""}']
        self._begun = True
        deltas += [_delta(part, text, self._function_call) for part, text in self.take_new()]
        chunks = [self._chunk(delta) for delta in deltas]
        if self.finish_reason is not None and not self._ended:
            self._ended = True
            extra = {"fathom": {"problems": self.problems}} if self.problems else {}
            chunks.append(self._chunk(json.dumps(extra), self.finish_reason))
        return chunks

    def to_json(self) -> dict[str, Any]:
        """Return the finished choice."""
        thinking, content = self.text("thinking"), self.text("content")
        calls = [_call(part) for part in self.parts if part.call is not None]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content if content or not calls else None,
            "refusal": None,
            "reasoning_content": thinking or None,
            "reasoning": thinking or None,
        }
        if calls and self._function_call:
            message["function_call"] = calls[0]["function"]
        elif calls:
            message["tool_calls"] = calls
        if self.problems:
            message["fathom"] = {"problems": self.problems}
        return {
            "index": self.index,
            "message": message,
            "logprobs": None if self.logprobs is None else {"content": self.logprobs, "refusal": None},
            "finish_reason": self.finish_reason,
        }

    def _chunk(self, delta: str, reason: str | None = None) -> str:
        logprobs = "null"
        if self.logprobs is not None and self._sent_logprobs < len(self.logprobs) and "role" not in delta[:8]:
            logprobs = json.dumps({"content": self.logprobs[self._sent_logprobs :], "refusal": None})
            self._sent_logprobs = len(self.logprobs)
        ended = "null" if reason is None else f'"{reason}"'
        return f'{{"index":{self.index},"delta":{delta},"logprobs":{logprobs},"finish_reason":{ended}}}'


class CompletionChoiceBuilder(ListedChoice):
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


def _call(part: AnswerPart) -> dict[str, Any]:
    assert part.call is not None
    function = {"name": part.call.name, "arguments": part.call.arguments}
    return {"id": f"call_{part.call_id}", "type": "function", "function": function}


def _delta(part: AnswerPart, text: str, function_call: bool) -> str:
    """Return the JSON of a chunk's ``delta``; ``text`` is what is new in ``part``, unless it is a call."""
    if part.call is not None and function_call:
        return json.dumps({"function_call": _call(part)["function"]})
    if part.call is not None:
        return f'{{"tool_calls":[{json.dumps({"index": part.call_index, **_call(part)})}]}}'
    value = quoted(text)
    if part.channel == "thinking":
        return f'{{"reasoning_content":{value},"reasoning":{value}}}'
    return f'{{"content":{value}}}'
