"""The response of /v1/responses: output items, or the events of OpenAI's Responses API."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from fathom.serve.errors import ApiError
from fathom.serve.response.answer import AnswerPart, AssistantAnswer, Choice
from fathom.serve.response.encoder import ResponseEncoder, ResponseMetadata, Usage
from fathom.serve.response.opaque import carry
from fathom.serve.response_store import memory_bytes

_LARGE = 1 << 16


class ResponsesEncoder(ResponseEncoder):
    """Writes one answer; each part of it is an output item of the same index.

    ``fields`` are the body's fields that repeat the request. With ``carry_reasoning`` reasoning items have an
    ``encrypted_content`` that may be sent back instead of their text. ``on_complete`` takes the whole body and what
    it takes in memory, in bytes. ``fields`` may be large: they are written as JSON here, once, in a thread.
    """

    def __init__(
        self,
        answer: AssistantAnswer,
        metadata: ResponseMetadata,
        fields: Mapping[str, Any],
        *,
        carry_reasoning: bool,
        on_complete: Callable[[dict[str, Any], int], None],
    ) -> None:
        self._answer, self._metadata, self._fields = answer, metadata, fields
        self._carry_reasoning, self._on_complete = carry_reasoning, on_complete
        self._fields_json = json.dumps(fields)
        self._fields_bytes = memory_bytes(self._fields_json)
        self._suffix = metadata.response_id.partition("_")[2]
        self._sequence = 0
        self._open: AnswerPart | None = None
        self._sent_logprobs = 0

    def begin(self) -> str:
        """Return the creation of the response."""
        response = self._json(self._response("in_progress"))
        return self._response_event("created", response) + self._response_event("in_progress", response)

    def update(self, choice: Choice) -> str:
        """Return the items' events of what is new in the answer."""
        return "".join([self._new(part, text) for part, text in self._answer.take_new()])

    def end(self, usage: Usage) -> str:
        """Return the end of the last item and the whole response."""
        empty = self._empty_message()
        events = "" if empty is None else self._new(empty, "")
        events += self._close()
        response, own_json = self._completed(usage)
        return events + self._response_event(response["status"], self._with_fields(own_json))

    def error(self, error: ApiError) -> str:
        """Return the failed response, with what was generated."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        failed = self._response("failed") | {
            "error": {"code": code, "message": error.message},
            "output": [self._item(part, "incomplete") for part in self._answer.parts],
        }
        return self._response_event("failed", self._json(failed))

    def body(self, usage: Usage) -> dict[str, Any]:
        """Return the whole response."""
        return self._completed(usage)[0]

    def _completed(self, usage: Usage) -> tuple[dict[str, Any], str]:
        """Hand the whole response to ``on_complete``; return it, and its ``_own_json``."""
        empty = self._empty_message()
        parts = [*self._answer.parts, *([] if empty is None else [empty])]
        response = self._response("incomplete" if self._cut else "completed") | {
            "output": [self._item(part, self._status(part)) for part in parts],
            "usage": _usage(usage),
            "incomplete_details": {"reason": "max_output_tokens"} if self._cut else None,
            "completed_at": None if self._cut else int(time.time()),
        }
        own_json = self._own_json(response)
        self._on_complete(response, self._fields_bytes + memory_bytes(own_json))
        return response, own_json

    @property
    def large(self) -> bool:
        """Whether the fields that repeat the request make the response large."""
        return len(self._fields_json) > _LARGE

    def _json(self, response: Mapping[str, Any]) -> str:
        return self._with_fields(self._own_json(response))

    def _with_fields(self, own_json: str) -> str:
        return f"{own_json[:-1]}, {self._fields_json[1:]}"

    def _own_json(self, response: Mapping[str, Any]) -> str:
        """Return a response's JSON without the fields that repeat the request."""
        return json.dumps({name: value for name, value in response.items() if name not in self._fields})

    @property
    def _cut(self) -> bool:
        return self._answer.finish_reason == "length"

    def _empty_message(self) -> AnswerPart | None:
        """Return a message without text where the answer ended with neither text nor calls: clients look for one."""
        said = any(part.channel != "thinking" for part in self._answer.parts)
        return None if said or self._cut else AnswerPart("content", len(self._answer.parts))

    def _response(self, status: str) -> dict[str, Any]:
        return {
            "id": self._metadata.response_id,
            "object": "response",
            "created_at": self._metadata.created,
            "status": status,
            "background": False,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "model": self._metadata.model,
            "output": [],
            "usage": None,
            **self._fields,
        }

    def _status(self, part: AnswerPart) -> str:
        last = self._answer.parts and part is self._answer.parts[-1]
        return "incomplete" if self._cut and last and part.call is None else "completed"

    def _id(self, part: AnswerPart) -> str:
        prefix = {"thinking": "rs", "content": "msg", "tool_call": "fc"}[part.channel]
        return f"{prefix}_{self._suffix}{part.index:02d}"

    def _item(self, part: AnswerPart, status: str) -> dict[str, Any]:
        """Return a whole item."""
        item = self._started(part) | {"status": status}
        if part.call is not None:
            return item | {"arguments": part.call.arguments}
        if part.channel == "thinking" and self._carry_reasoning:
            item |= {"encrypted_content": carry(part.text)}
        return item | {"content": [_content(part)]}

    def _started(self, part: AnswerPart) -> dict[str, Any]:
        """Return an item as its first event has it."""
        item: dict[str, Any] = {"id": self._id(part), "status": "in_progress"}
        if part.call is not None:
            call = {"call_id": f"call_{part.call_id}", "name": part.call.name, "arguments": ""}
            return item | {"type": "function_call", **call}
        if part.channel == "thinking":
            return item | {"type": "reasoning", "summary": [], "content": []}
        return item | {"type": "message", "role": "assistant", "content": []}

    def _new(self, part: AnswerPart, text: str) -> str:
        events = ""
        if part is not self._open:
            events = self._close() + self._start(part)
            self._open = part
        if part.call is not None:
            arguments = part.call.arguments
            events += self._part_event(part, "response.function_call_arguments.delta", delta=arguments)
            name = part.call.name
            return events + self._part_event(
                part, "response.function_call_arguments.done", name=name, arguments=arguments
            )
        if not text:
            return events
        if part.channel == "thinking":
            return events + self._part_event(part, "response.reasoning_text.delta", content_index=0, delta=text)
        logprobs, self._sent_logprobs = part.logprobs[self._sent_logprobs :], len(part.logprobs)
        return events + self._part_event(
            part, "response.output_text.delta", content_index=0, delta=text, logprobs=logprobs
        )

    def _start(self, part: AnswerPart) -> str:
        self._sent_logprobs = 0
        started = self._event("response.output_item.added", output_index=part.index, item=self._started(part))
        if part.call is not None:
            return started
        empty = _content(AnswerPart(part.channel, part.index))
        return started + self._part_event(part, "response.content_part.added", content_index=0, part=empty)

    def _close(self) -> str:
        part, self._open = self._open, None
        if part is None:
            return ""
        events = ""
        if part.channel == "thinking":
            events = self._part_event(part, "response.reasoning_text.done", content_index=0, text=part.text)
        elif part.call is None:
            events = self._part_event(
                part, "response.output_text.done", content_index=0, text=part.text, logprobs=part.logprobs
            )
        if part.call is None:
            events += self._part_event(part, "response.content_part.done", content_index=0, part=_content(part))
        item = self._item(part, self._status(part))
        return events + self._event("response.output_item.done", output_index=part.index, item=item)

    def _part_event(self, part: AnswerPart, kind: str, /, **fields: Any) -> str:
        return self._event(kind, item_id=self._id(part), output_index=part.index, **fields)

    def _response_event(self, status: str, response: str) -> str:
        event = f'{{"type": "response.{status}", "sequence_number": {self._sequence}, "response": {response}}}'
        self._sequence += 1
        return f"event: response.{status}\ndata: {event}\n\n"

    def _event(self, kind: str, /, **fields: Any) -> str:
        event = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return f"event: {kind}\ndata: {json.dumps(event)}\n\n"


def _content(part: AnswerPart) -> dict[str, Any]:
    """Return an item's only content: the text of the message or of the reasoning."""
    if part.channel == "thinking":
        return {"type": "reasoning_text", "text": part.text}
    return {"type": "output_text", "text": part.text, "annotations": [], "logprobs": part.logprobs}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }
