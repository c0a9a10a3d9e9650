"""The response of /v1/messages: a message of content blocks, or Anthropic's events."""

from __future__ import annotations

import json
from typing import Any

from fathom.files import sha256
from fathom.serve.errors import ANTHROPIC_PREFIX, ApiError, error_body
from fathom.serve.response.answer import AnswerPart, AssistantAnswer, Choice
from fathom.serve.response.encoder import ResponseEncoder, ResponseMetadata, Usage
from fathom.serve.response.opaque import carry


class MessagesEncoder(ResponseEncoder):
    """Writes one answer; each part of it is a content block of the same index.

    ``prompt_tokens`` are those of the prompt, sent before the engine has said how many of them were cached. With
    ``omit_thinking`` the reasoning is only carried in the signature of its block, else a signature is a digest.
    """

    def __init__(
        self,
        answer: AssistantAnswer,
        metadata: ResponseMetadata,
        *,
        prompt_tokens: int,
        request_id: str,
        omit_thinking: bool = False,
    ) -> None:
        self._answer, self._metadata = answer, metadata
        self._prompt_tokens, self._request_id = prompt_tokens, request_id
        self._omit_thinking = omit_thinking
        self._open: AnswerPart | None = None

    def begin(self) -> str:
        """Return the start of the message, and a ping."""
        usage = Usage(prompt=self._prompt_tokens, cached=0, completion=0, reasoning=0)
        message = self._message([], usage) | _stop(None, None)
        return _event("message_start", message=message) + _event("ping")

    def update(self, choice: Choice) -> str:
        """Return the blocks' events of what is new in the answer."""
        return "".join([self._new(part, text) for part, text in self._answer.take_new()])

    def end(self, usage: Usage) -> str:
        """Return the end of the last block and of the message."""
        delta = _event("message_delta", delta=self._stopped(), usage=_usage(usage))
        return self._close() + delta + _event("message_stop")

    def error(self, error: ApiError) -> str:
        """Return an error event."""
        return f"event: error\ndata: {json.dumps(error_body(error, ANTHROPIC_PREFIX, self._request_id))}\n\n"

    def body(self, usage: Usage) -> dict[str, Any]:
        """Return the whole message."""
        return self._message([self._block(part) for part in self._answer.parts], usage) | self._stopped()

    def _message(self, content: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        return {
            "id": self._metadata.response_id,
            "type": "message",
            "role": "assistant",
            "model": self._metadata.model,
            "content": content,
            "usage": _usage(usage) | {"service_tier": "standard"},
        }

    def _stopped(self) -> dict[str, Any]:
        found = self._answer.parser.stopped
        if self._answer.finish_reason == "length":
            return _stop("max_tokens", None)
        if self._answer.has_calls:
            return _stop("tool_use", None)
        return _stop("end_turn", None) if found is None else _stop("stop_sequence", found)

    def _new(self, part: AnswerPart, text: str) -> str:
        events = ""
        if part is not self._open:
            events = self._close() + _event("content_block_start", index=part.index, content_block=_empty(part))
            self._open = part
        if part.call is not None:
            return events + _delta(part, type="input_json_delta", partial_json=part.call.arguments)
        if part.channel == "thinking":
            return events if self._omit_thinking else events + _delta(part, type="thinking_delta", thinking=text)
        return events + _delta(part, type="text_delta", text=text)

    def _close(self) -> str:
        part, self._open = self._open, None
        if part is None:
            return ""
        signature = ""
        if part.channel == "thinking":
            signature = _delta(part, type="signature_delta", signature=self._signature(part))
        return signature + _event("content_block_stop", index=part.index)

    def _signature(self, part: AnswerPart) -> str:
        return carry(part.text) if self._omit_thinking else sha256(part.text)

    def _block(self, part: AnswerPart) -> dict[str, Any]:
        if part.call is not None:
            return _empty(part) | {"input": json.loads(part.call.arguments)}
        if part.channel == "thinking":
            shown = "" if self._omit_thinking else part.text
            return {"type": "thinking", "thinking": shown, "signature": self._signature(part)}
        return {"type": "text", "text": part.text}


def _empty(part: AnswerPart) -> dict[str, Any]:
    """Return a block as its start has it."""
    if part.call is not None:
        return {"type": "tool_use", "id": f"toolu_{part.call_id}", "name": part.call.name, "input": {}}
    if part.channel == "thinking":
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}


def _stop(reason: str | None, sequence: str | None) -> dict[str, Any]:
    return {"stop_reason": reason, "stop_sequence": sequence, "stop_details": None}


def _usage(usage: Usage) -> dict[str, Any]:
    """Return token counts; the prompt's tokens are those that were computed and those that were cached."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
    }


def _delta(part: AnswerPart, **delta: str) -> str:
    return _event("content_block_delta", index=part.index, delta=delta)


def _event(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"
