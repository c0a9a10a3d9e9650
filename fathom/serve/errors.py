"""Errors in the format of their route: OpenAI's ``{"error": {"message", "type", "param", "code"}}``, or Anthropic's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fathom.errors import ContextError, DataError, Draining, FathomError, QueueFull, SpecError

_FIELD = re.compile(r"[A-Za-z_]\w*(\[\d+\])*")
_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}
ANTHROPIC_PREFIX = "/v1/messages"
"""Routes below it speak Anthropic's interface, errors included."""
_ANTHROPIC_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}
_ANTHROPIC_CODES = frozenset({"thread_not_found"})
"""Codes that Anthropic's clients read in an error's details: on this one they send the whole conversation."""


class ApiError(FathomError):
    """An error that is sent to the client.

    ``param`` names the field at fault, ``code`` is for programs to read; ``retry_after`` is in seconds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after
        super().__init__(message)

    @property
    def body(self) -> dict[str, Any]:
        """The response's JSON."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """The response's further headers."""
        given = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return given | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def error_body(error: ApiError, path: str, request_id: str) -> dict[str, Any]:
    """Return an error's JSON in the format of the route at ``path``."""
    if not path.startswith(ANTHROPIC_PREFIX):
        return error.body
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error")
    found: dict[str, Any] = {"type": kind, "message": error.message}
    if error.code in _ANTHROPIC_CODES:
        found["details"] = {"error_code": error.code}
    return {"type": "error", "error": found, "request_id": request_id}


class ClientDisconnected(Exception):
    """The client closed the connection before its response was complete."""


def refuse(param: str, problem: str, remedy: str, *, code: str | None = None) -> ApiError:
    """Return the error of a field whose value cannot be used."""
    return ApiError(400, f"{param}: {problem}; {remedy}", param=param, code=code)


def as_api_error(error: FathomError, *, retry_after: int) -> ApiError:
    """Convert an error of the layers below; ``retry_after`` (seconds) is sent where the engine is full or draining."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        return ApiError(
            429,
            f"the queue is full with {error.waiting} requests; try again in {retry_after} s",
            code="queue_full",
            retry_after=retry_after,
        )
    if isinstance(error, Draining):
        return draining(retry_after)
    if isinstance(error, ContextError):
        field = str(error).partition(":")[0]
        param = field if _FIELD.fullmatch(field) else None
        return ApiError(400, str(error), param=param, code="context_length_exceeded")
    if isinstance(error, SpecError):
        return ApiError(400, str(error), param=error.path or None)
    if isinstance(error, DataError):
        return ApiError(400, str(error))
    return ApiError(500, str(error), code="internal_error")


def draining(retry_after: int) -> ApiError:
    """Return the error of a server that is shutting down."""
    return ApiError(
        503,
        f"the server is shutting down and takes no new requests; try again in {retry_after} s",
        code="draining",
        retry_after=retry_after,
    )
