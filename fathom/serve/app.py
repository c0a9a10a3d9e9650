"""The FastAPI application: routes, middleware and the OpenAPI document."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from fathom.serve.api.chat import create_chat_completion
from fathom.serve.api.completions import create_completion
from fathom.serve.api.embeddings import create_embeddings
from fathom.serve.api.messages import messages_router
from fathom.serve.api.responses_router import responses_router
from fathom.serve.api.tokens import detokenize, tokenize, tokenizer_info
from fathom.serve.errors import ApiError, error_body
from fathom.serve.http.middleware import RequestMiddleware
from fathom.serve.http.notices import CLAMPED_HEADER, IGNORED_HEADER
from fathom.serve.http.openapi import STREAMED, describe
from fathom.serve.http.page_files import page_router
from fathom.serve.key_usage import LIMIT_HEADERS, usage_of
from fathom.serve.model_loader import settle
from fathom.serve.model_pool import ModelPool
from fathom.serve.schemas import response_models as responses
from fathom.serve.schemas.chat import ChatCompletionRequest
from fathom.serve.schemas.completions import CompletionRequest
from fathom.serve.schemas.embeddings import EmbeddingRequest
from fathom.serve.schemas.messages import CountTokensRequest, MessagesRequest
from fathom.serve.schemas.responses import InputTokensRequest, ResponsesRequest
from fathom.serve.schemas.text import DetokenizeRequest, TokenizeRequest

EXPOSED_HEADERS = ("x-request-id", "request-id", "retry-after", IGNORED_HEADER, CLAMPED_HEADER, *LIMIT_HEADERS)
BODIES: Mapping[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/responses/input_tokens": InputTokensRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountTokensRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}


def create_app(models: ModelPool) -> FastAPI:
    """Return the application over a pool of models, which is ``app.state.models``.

    Run it in one process: the engines' state is in it.
    """
    settings = models.settings

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        models.attach(asyncio.get_running_loop())
        settle()
        yield
        models.executor.close()

    app = FastAPI(
        title="Fathom",
        version="1",
        description="Language models over OpenAI's and Anthropic's interfaces.",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.models = models
    _add_generation_routes(app, models)
    _add_model_routes(app, models)
    _add_tokenizer_routes(app, models)
    _add_status_routes(app, models)
    app.include_router(responses_router(models))
    app.include_router(messages_router(models))
    app.include_router(page_router(settings.root_path))
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(RequestMiddleware, settings=settings, metrics=models.metrics, keys=models.keys)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],  # the official clients send a dozen that describe themselves, and add to them
            expose_headers=list(EXPOSED_HEADERS),
        )
    app.openapi = lambda: describe(app, BODIES, settings, keys=len(models.keys) > 0)  # type: ignore[method-assign]
    document = functools.cache(lambda: json.dumps(app.openapi()).encode())

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return Response(document(), media_type="application/json")

    return app


def _add_generation_routes(app: FastAPI, models: ModelPool) -> None:
    @app.post(
        "/v1/chat/completions",
        response_model=responses.ChatCompletionResponse,
        responses=STREAMED,
        tags=["generation"],
    )
    async def chat(request: Request) -> Response:
        """Answer a conversation."""
        return await create_chat_completion(models, request)

    @app.post(
        "/v1/completions",
        response_model=responses.CompletionResponse,
        responses=STREAMED,
        tags=["generation"],
    )
    async def completions(request: Request) -> Response:
        """Complete texts, or fill in the middle."""
        return await create_completion(models, request)

    @app.post("/v1/embeddings", response_model=responses.EmbeddingResponse, tags=["generation"])
    async def embeddings(request: Request) -> Response:
        """Return the embeddings of texts: pooled hidden states of length 1."""
        return await create_embeddings(models, request)


def _add_model_routes(app: FastAPI, models: ModelPool) -> None:
    @app.get("/v1/models", response_model=responses.ModelList, tags=["models"])
    async def list_models(request: Request) -> Response:
        """List the served models that the key may use, loaded or not, and their aliases."""
        cards = models.cards(usage_of(request))
        page = {"has_more": False, "first_id": cards[0]["id"], "last_id": cards[-1]["id"]}
        return JSONResponse({"object": "list", "data": cards, **page})

    @app.get("/v1/models/{name:path}", response_model=responses.ModelCard, tags=["models"])
    async def model(request: Request, name: str) -> Response:
        """Describe one model."""
        return JSONResponse(models.card(name, usage_of(request)))


def _add_tokenizer_routes(app: FastAPI, models: ModelPool) -> None:
    @app.post("/tokenize", response_model=responses.TokenizeResponse, tags=["tokens"])
    async def to_tokens(request: Request) -> Response:
        """Return a text's tokens."""
        return await tokenize(models, request)

    @app.post("/detokenize", response_model=responses.DetokenizeResponse, tags=["tokens"])
    async def to_text(request: Request) -> Response:
        """Return tokens' text."""
        return await detokenize(models, request)

    @app.get("/tokenizer_info", response_model=responses.TokenizerInfo, tags=["tokens"])
    async def facts(request: Request) -> Response:
        """Describe the tokenizer and its chat template; ``?model=`` names the model."""
        return JSONResponse(await tokenizer_info(models, request))


def _add_status_routes(app: FastAPI, models: ModelPool) -> None:
    @app.get(
        "/health",
        response_model=responses.HealthResponse,
        responses={503: {"model": responses.HealthResponse}},
        tags=["status"],
    )
    async def health() -> Response:
        """Report whether the engines of all loaded models make progress; ``status`` is the reason where not."""
        fault = models.lifecycle.fault
        return JSONResponse({"status": fault or "ok"}, 503 if fault else 200)

    @app.get(
        "/ready",
        response_model=responses.HealthResponse,
        responses={503: {"model": responses.HealthResponse}},
        tags=["status"],
    )
    async def ready() -> Response:
        """Report whether requests are accepted."""
        fault = "shutting down" if models.lifecycle.draining else models.lifecycle.fault
        return JSONResponse({"status": fault or "ready"}, 503 if fault else 200)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}}, tags=["status"])
    async def metrics() -> Response:
        """Return all metrics in Prometheus' text format."""
        return Response(models.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _http_error(request: Request, error: Exception) -> Response:
    """Return the error of an unknown route or method in OpenAI's format; OPTIONS asks which methods a route has."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405 and request.method == "OPTIONS":
        return Response(status_code=204, headers=dict(error.headers or {}))
    document = f"{request.app.state.models.settings.root_path}/openapi.json"
    words = {
        404: f"{request.url.path[:80]}: there is no such route; see {document}",
        405: f"{request.method}: not a method of this route; see {document}",
    }
    fault = ApiError(error.status_code, words.get(error.status_code, str(error.detail)), code="no_route")
    body = error_body(fault, request.url.path, request.state.request_id)
    return JSONResponse(body, error.status_code, headers=dict(error.headers or {}))
