"""POST /v1/responses: OpenAI's Responses API over the chat requests of this server."""

from __future__ import annotations

import bisect
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from fathom.serve.api.chat import chat_job, count_prompt, prepare
from fathom.serve.api.responses_translation import ResponsesTranslation, echoed_tools
from fathom.serve.api.stored_responses import input_items
from fathom.serve.errors import ApiError, refuse
from fathom.serve.http.request_body import read_body
from fathom.serve.model_pool import ModelPool
from fathom.serve.owner import owner_of
from fathom.serve.request_context import RequestContext
from fathom.serve.response.encoder import ResponseMetadata
from fathom.serve.response.responses_encoder import ResponsesEncoder
from fathom.serve.response_store import ResponseStore, StoredResponse, memory_bytes
from fathom.serve.schemas.chat import ChatCompletionRequest
from fathom.serve.schemas.responses import InputTokensRequest, Item, ResponsesRequest, ResponsesToolChoice
from fathom.serve.service import GenerationJob, Service

_TOO_LONG = "context_length_exceeded"
_ENCRYPTED = "reasoning.encrypted_content"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """The items that a request names: those of the responses before it, and its own with references resolved."""

    history: Sequence[Item]
    items: Sequence[Item]


async def create_response(models: ModelPool, store: ResponseStore, http: HttpRequest) -> Response:
    """Answer a conversation, and keep the response unless ``store`` is false."""
    began = time.monotonic()
    body = await read_body(http, ResponsesRequest, models.executor)
    _check(body)
    service = await models.acquire(http, body.model)
    owner, context = owner_of(http), service.request_context(http, body.cache_salt)
    read = _conversation(store, owner, body)

    def job() -> GenerationJob:
        conversation = read()
        keep = _keeper(store, owner, body, conversation)
        return _job(service, body, conversation, keep, context)

    return await service.respond(http, job, stream=bool(body.stream), began=began)


def _keeper(
    store: ResponseStore, owner: str, body: ResponsesRequest, conversation: Conversation
) -> Callable[[dict[str, Any], int], None]:
    """Return what keeps a complete response of so many bytes, unless ``store`` is false; runs in a thread."""
    if body.store is False:
        return lambda response, nbytes: None
    items = input_items(conversation.items)
    input_bytes = memory_bytes(json.dumps(items))

    def keep(response: dict[str, Any], nbytes: int) -> None:
        stored = StoredResponse(
            body=response, input_items=items, nbytes=nbytes + input_bytes, previous=body.previous_response_id
        )
        store.put(owner, stored)

    return keep


async def count_input_tokens(models: ModelPool, store: ResponseStore, http: HttpRequest) -> Response:
    """Count the tokens of a response's prompt."""
    body = await read_body(http, InputTokensRequest, models.executor)
    service = await models.acquire(http, body.model)
    read = _conversation(store, owner_of(http), body)
    context = service.request_context(http)

    def count() -> int:
        conversation = read()
        translation = ResponsesTranslation(body, conversation.history, conversation.items)
        return count_prompt(service, translation, context)

    tokens = await service.run(count)
    return JSONResponse({"object": "response.input_tokens", "input_tokens": tokens})


def _check(body: ResponsesRequest) -> None:
    """Refuse what this server does not do."""
    if body.background:
        raise refuse("background", "true is not served here", "leave it out, and wait for the answer or stream it")
    if body.prompt is not None:
        raise refuse("prompt", "names a prompt that is kept elsewhere", "send its text as instructions")


def _conversation(store: ResponseStore, owner: str, body: InputTokensRequest) -> Callable[[], Conversation]:
    """Look up what a conversation refers to, and return what reads its items; call that in a thread.

    Raises:
        ApiError: 404, an item or a response is not kept here; 400, there is no input.
    """
    if body.conversation is not None:
        raise refuse("conversation", "is not kept here", "use previous_response_id, or send all items as input")
    if not body.input and body.instructions is None:
        raise refuse("input", "is missing", "give a text or items")
    history = [] if body.previous_response_id is None else store.history(owner, body.previous_response_id)
    given = body.input or []
    own = [Item(type="message", role="user", content=given)] if isinstance(given, str) else given
    wanted: dict[str, str] = {}
    for index, item in enumerate(own):
        if (item_id := _reference(item)) is not None:
            wanted.setdefault(item_id, f"input[{index}].id")
    found = store.items(owner, wanted)

    def read() -> Conversation:
        items = [item if (at := _reference(item)) is None else Item.model_validate(found[at]) for item in own]
        return Conversation(history=[Item.model_validate(item) for item in history], items=items)

    return read


def _reference(item: Item) -> str | None:
    """Return the id of the kept item that an item stands for, or None where it is an item itself."""
    refers = item.type == "item_reference" or (item.type is None and item.role is None)
    return item.id if refers else None


def _job(
    service: Service,
    body: ResponsesRequest,
    conversation: Conversation,
    keep: Callable[[dict[str, Any], int], None],
    context: RequestContext,
) -> GenerationJob:
    """Preprocess a conversation; runs in a thread."""
    translation = ResponsesTranslation(body, conversation.history, conversation.items)
    context.notices.ignore(translation.ignored)
    metadata = ResponseMetadata.new("resp", service.name, "_")

    def job(chat: ChatCompletionRequest) -> GenerationJob:
        return chat_job(
            service,
            chat,
            lambda choices, _: ResponsesEncoder(
                choices[0],
                metadata,
                echo(body),
                carry_reasoning=_ENCRYPTED in (body.include or []),
                on_complete=keep,
            ),
            context=context,
        )

    def fitted() -> GenerationJob:
        try:
            return job(translation.chat)
        except ApiError as error:
            if body.truncation != "auto" or error.code != _TOO_LONG:
                raise
            return job(_shortened(service, translation, error, context))

    made = translation.names.run(fitted)
    context.notices.rename_clamped("max_tokens", "max_output_tokens")
    return made


def _shortened(
    service: Service, translation: ResponsesTranslation, fault: ApiError, context: RequestContext
) -> ChatCompletionRequest:
    """Return the chat request without as few of its first turns as possible, so that it fits.

    Raises:
        ApiError: ``fault``, where even the last turn is too long.
    """

    def fits(turns: int) -> bool:
        try:
            prepare(service, translation.without_first_turns(turns), context)
        except ApiError as error:
            if error.code != _TOO_LONG:
                raise
            return False
        return True

    turns = bisect.bisect_left(range(translation.turns), True, lo=1, key=fits)
    if turns >= translation.turns:
        raise fault
    return translation.without_first_turns(turns)


def echo(body: ResponsesRequest) -> dict[str, Any]:
    """Return the response's fields that repeat the request, defaults included."""
    text, reasoning = body.text, body.reasoning
    wanted = None if text is None or text.format is None else text.format.model_dump(by_alias=True, exclude_none=True)
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {
            "effort": None if reasoning is None else reasoning.effort,
            "summary": None if reasoning is None else reasoning.summary,
        },
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": wanted or {"type": "text"}, "verbosity": None if text is None else text.verbosity},
        "tool_choice": _echoed_choice(body.tool_choice),
        "tools": echoed_tools(body.tools or []),
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": body.truncation or "disabled",
        "user": body.user,
    }


def _echoed_choice(choice: str | ResponsesToolChoice | None) -> Any:
    if choice is None or isinstance(choice, str):
        return choice or "auto"
    chosen = choice.model_dump(exclude_none=True)
    return {"mode": "auto", "tools": []} | chosen if choice.type == "allowed_tools" else chosen
