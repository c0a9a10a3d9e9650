"""The OpenAPI document: every route with its request body and every status of its responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from fathom.serve.errors import ANTHROPIC_PREFIX
from fathom.serve.schemas.messages_models import AnthropicErrorResponse
from fathom.serve.schemas.response_models import ErrorResponse
from fathom.serve.settings import ServeSettings

STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
"""``responses`` of a route whose response may also be a stream of server-sent events."""
_REFERENCE = "#/components/schemas/{model}"
STATUSES: Mapping[int, str] = {
    400: "A field is wrong; the message names it.",
    401: "No valid key.",
    403: "The key may not use the model.",
    404: "No such model or route.",
    405: "The route has no such method.",
    408: "The body took too long.",
    413: "The body is too large.",
    415: "The body is no JSON.",
    429: "Too much is waiting; Retry-After says for how long.",
    431: "The headers are too large.",
    500: "A fault of the server.",
    503: "The server is shutting down.",
}


def describe(
    app: FastAPI, bodies: Mapping[str, type[BaseModel]], settings: ServeSettings, *, keys: bool
) -> dict[str, Any]:
    """Return the document; ``bodies`` maps the routes that read a body to its schema."""
    servers = [{"url": settings.root_path}] if settings.root_path else None
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, servers=servers
    )
    models: list[type[BaseModel]] = [*dict.fromkeys(bodies.values()), ErrorResponse, AnthropicErrorResponse]
    named, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REFERENCE)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas |= definitions["$defs"]
    for path, operations in document["paths"].items():
        fault = AnthropicErrorResponse if path.startswith(ANTHROPIC_PREFIX) else ErrorResponse
        error = {"application/json": {"schema": named[(fault, "validation")]}}
        for operation in operations.values():
            operation["responses"].pop("422", None)
            for status, words in STATUSES.items():
                operation["responses"].setdefault(str(status), {"description": words, "content": error})
            if path in bodies:
                schema = named[(bodies[path], "validation")]
                operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
            if keys and path not in ("/health", "/ready"):
                operation["security"] = [{"key": []}]
    if keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return document
