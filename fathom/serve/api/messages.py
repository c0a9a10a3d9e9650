"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's interface over the chat requests of this server."""

from __future__ import annotations

import time

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from fathom.serve.api.chat import chat_job, count_prompt
from fathom.serve.api.messages_translation import MessagesTranslation
from fathom.serve.errors import ApiError
from fathom.serve.http.openapi import STREAMED
from fathom.serve.http.request_body import read_body
from fathom.serve.model_pool import ModelPool
from fathom.serve.request_context import RequestContext
from fathom.serve.response.encoder import ResponseMetadata
from fathom.serve.response.messages_encoder import MessagesEncoder
from fathom.serve.schemas.messages import CountTokensRequest, MessagesRequest
from fathom.serve.schemas.messages_models import MessageResponse, TokensCount
from fathom.serve.service import GenerationJob, Service


def messages_router(models: ModelPool) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["generation"])

    @router.post("/v1/messages", response_model=MessageResponse, responses=STREAMED)
    async def messages(request: HttpRequest) -> Response:
        """Continue a conversation, in Anthropic's format."""
        return await create_message(models, request)

    @router.post("/v1/messages/count_tokens", response_model=TokensCount)
    async def count(request: HttpRequest) -> Response:
        """Count the tokens of a conversation's prompt, in Anthropic's format."""
        return await count_tokens(models, request)

    return router


async def create_message(models: ModelPool, http: HttpRequest) -> Response:
    """Continue a conversation."""
    began = time.monotonic()
    body = await read_body(http, MessagesRequest, models.executor)
    _refuse_continued_thread(body)
    service = await models.acquire(http, body.model)
    context = service.request_context(http)
    return await service.respond(http, lambda: _job(service, body, context), stream=bool(body.stream), began=began)


def _refuse_continued_thread(body: MessagesRequest) -> None:
    """Refuse a request whose earlier turns, tools and system prompt are those of a thread: answering it without them
    would be wrong. Anthropic's clients then send the whole conversation."""
    if body.thread is not None and body.thread.type == "continue":
        raise ApiError(
            404,
            "thread.previous_message_id: conversations are not kept here; send the whole conversation without thread",
            param="thread.previous_message_id",
            code="thread_not_found",
        )


async def count_tokens(models: ModelPool, http: HttpRequest) -> Response:
    """Count the tokens of a conversation's prompt, as a message created from it does."""
    body = await read_body(http, CountTokensRequest, models.executor)
    service = await models.acquire(http, body.model)
    context = service.request_context(http)
    tokens = await service.run(lambda: count_prompt(service, MessagesTranslation(body), context))
    return JSONResponse({"input_tokens": tokens})


def _job(service: Service, body: MessagesRequest, context: RequestContext) -> GenerationJob:
    """Preprocess a conversation; runs in a thread."""
    translation = MessagesTranslation(body)
    context.notices.ignore(translation.ignored)
    omitted = body.thinking is not None and body.thinking.display == "omitted"
    metadata = ResponseMetadata.new("msg", service.name, "_")
    return translation.names.run(
        lambda: chat_job(
            service,
            translation.chat,
            lambda choices, prompt_tokens: MessagesEncoder(
                choices[0],
                metadata,
                prompt_tokens=prompt_tokens,
                request_id=context.request_id,
                omit_thinking=omitted,
            ),
            context=context,
        )
    )
