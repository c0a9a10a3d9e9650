"""The routes of /v1/responses."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from fathom.serve.api import stored_responses as stored
from fathom.serve.api.responses import count_input_tokens, create_response
from fathom.serve.http.openapi import STREAMED
from fathom.serve.model_pool import ModelPool
from fathom.serve.owner import owner_of
from fathom.serve.response_store import ResponseStore
from fathom.serve.schemas.responses_models import DeletedResponse, InputItemList, InputTokens, ResponseObject


def responses_router(models: ModelPool) -> APIRouter:
    """Return the routes over a store of their own, bounded by the settings' limits."""
    limits = models.settings.limits
    store = ResponseStore(max_responses=limits.stored_responses, max_bytes=limits.stored_response_bytes)
    router = APIRouter(prefix="/v1/responses", tags=["generation"])

    @router.post("", response_model=ResponseObject, responses=STREAMED)
    async def create(request: HttpRequest) -> Response:
        """Answer a conversation, in the format of OpenAI's Responses API."""
        return await create_response(models, store, request)

    @router.post("/input_tokens", response_model=InputTokens)
    async def count(request: HttpRequest) -> Response:
        """Count the tokens of a response's prompt."""
        return await count_input_tokens(models, store, request)

    @router.get("/{response_id}", response_model=ResponseObject)
    async def retrieve(response_id: str, request: HttpRequest) -> Response:
        """Return a kept response."""
        return await stored.retrieve(store, owner_of(request), response_id, request)

    @router.delete("/{response_id}", response_model=DeletedResponse)
    async def delete(response_id: str, request: HttpRequest) -> Response:
        """Forget a kept response."""
        return stored.delete(store, owner_of(request), response_id)

    @router.get("/{response_id}/input_items", response_model=InputItemList)
    async def items(response_id: str, request: HttpRequest) -> Response:
        """List the items that a kept response was created from: ``order``, ``after`` and ``limit`` page them."""
        return await stored.list_input_items(store, owner_of(request), response_id, request)

    @router.post("/{response_id}/cancel", response_model=ResponseObject)
    async def cancel(response_id: str, request: HttpRequest) -> Response:
        """Refuse: only background responses can be cancelled, and there are none."""
        return stored.cancel(store, owner_of(request), response_id)

    return router
