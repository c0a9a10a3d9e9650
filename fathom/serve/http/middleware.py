"""Checks that every request passes first (host, API key, sizes), request ids and the access log.

Pure ASGI, so that a response's chunks pass through without a task or a queue of their own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fathom.serve.errors import ANTHROPIC_PREFIX, ApiError, ClientDisconnected, error_body
from fathom.serve.http.access_log import log_request, shown_client, shown_path
from fathom.serve.http.connections import OVERLOADED
from fathom.serve.http.notices import Notices
from fathom.serve.key_usage import KeyRing, KeyUsage
from fathom.serve.metrics import Metrics
from fathom.serve.root_path import below_root
from fathom.serve.settings import ServeSettings

logger = logging.getLogger("fathom.serve")
STATE_PATHS = frozenset({"/health", "/ready"})
UNAUTHENTICATED_PATHS = STATE_PATHS | {"/", "/favicon.ico"}
UNAUTHENTICATED_PREFIX = "/page/"
CLIENT_CLOSED_REQUEST = 499
"""Logged as the status of a request whose client left before a response began, as nginx does."""
_KEY_HEADERS = (b"x-api-key", b"api-key")
_DISCARD_SECONDS = 2.0
_CLIENT_ID_HEADERS = (b"x-client-request-id", b"x-request-id")
_LOGGED_METHOD = 16
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]*)(?::[0-9]*)?")
_CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestMiddleware:
    """Checks keys, hosts and sizes, gives each request an id, writes the access log and counts responses."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics, keys: KeyRing) -> None:
        self.app = app
        self.keys = keys
        self.settings = settings
        self.metrics = metrics
        self._open_paths = UNAUTHENTICATED_PATHS | {settings.root_path}
        self._hosts = frozenset(host.lower() for host in settings.allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or send its error."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1003})
                return
            await self.app(scope, receive, send)
            return
        await _HttpExchange(
            self, canonical(scope, self.settings.root_path), receive, send, head=scope["method"] == "HEAD"
        ).run()

    def check(self, scope: Scope) -> None:
        """Check a request's headers.

        Raises:
            ApiError: 431, 400, 503, 401, 415 or 413, checked in this order.
        """
        headers = dict(scope["headers"])
        limits = self.settings.limits
        size = sum(len(name) + len(value) for name, value in scope["headers"]) + len(scope["raw_path"])
        if size + len(scope["query_string"]) > limits.header_bytes:
            raise ApiError(431, f"headers: {size} bytes exceed {limits.header_bytes}; send fewer", code="headers_large")
        host = _without_port(headers.get(b"host", b"").decode("latin-1")).lower()
        if self._hosts and host not in self._hosts:
            raise ApiError(
                400,
                f"Host: {host[:80]!r} is not allowed; start the server with --allowed-host",
                code="wrong_host",
            )
        path = scope["path"]
        if OVERLOADED in scope["state"] and path not in STATE_PATHS:
            self.metrics.connections_closed.labels("refused").inc()
            seconds = self.metrics.retry_after(self.metrics.in_progress)
            raise ApiError(
                503,
                f"too many connections are open; try again in {seconds} s",
                code="too_many_connections",
                retry_after=seconds,
            )
        if len(self.keys) and path not in self._open_paths and not path.startswith(UNAUTHENTICATED_PREFIX):
            scope["state"]["key"] = self._check_key(headers)
        if scope["method"] in ("POST", "PUT", "PATCH"):
            _check_body(headers, limits.body_bytes)

    def _check_key(self, headers: Mapping[bytes, bytes]) -> KeyUsage:
        """Return the valid key in OpenAI's header, Anthropic's or Azure's."""
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        given = [bearer if scheme.lower() == b"bearer" else b"", *(headers.get(name, b"") for name in _KEY_HEADERS)]
        found = self.keys.find(given)
        if found is None:
            raise ApiError(
                401,
                "Authorization: no valid key; send 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
                code="invalid_api_key",
            )
        return found


class _HttpExchange:
    """One request and its response; that of ``head`` has headers only."""

    def __init__(
        self, middleware: RequestMiddleware, scope: Scope, receive: Receive, send: Send, *, head: bool = False
    ) -> None:
        self.middleware, self.scope, self._head = middleware, scope, head
        self._receive, self._send = receive, send
        self.began = time.monotonic()
        self.request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = self.request_id
        self.status, self.sent = 0, 0
        self.received = 0
        self.body_open = True
        self.notices = scope["state"]["notices"] = Notices()
        self.log_fields: dict[str, Any] = {}
        scope["state"]["log_fields"] = self.log_fields
        self.cleanup = scope["state"]["cleanup"] = ExitStack()
        """Closed at the end of the request, however it ends; routes add what they must release."""

    async def run(self) -> None:
        """Handle the request, send its error if it has one, and write the access log."""
        try:
            self.middleware.check(self.scope)
            await self.middleware.app(self.scope, self.receive, self.send)
        except ClientDisconnected:
            self.status = CLIENT_CLOSED_REQUEST
        except ApiError as error:
            await self.fail(error)
        except Exception:
            logger.exception("request %s failed", self.request_id)
            await self.fail(ApiError(500, f"internal error in request {self.request_id}", code="internal_error"))
        finally:
            self.cleanup.close()
            self.log()

    async def receive(self) -> Message:
        """Receive a part of the body, within the limits of size and time."""
        if not self.body_open:
            return await self._receive()
        limits = self.middleware.settings.limits
        slowest = limits.head_timeout_seconds + self.received / limits.body_bytes_per_second
        seconds = min(limits.body_timeout_seconds, slowest)
        try:
            async with asyncio.timeout(self.began + seconds - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            self.middleware.metrics.connections_closed.labels("body_timeout").inc()
            raise ApiError(408, f"body: not received within {seconds:g} s; send it faster", code="slow_body") from None
        self.received += len(message.get("body", b""))
        self.body_open = message["type"] == "http.request" and message.get("more_body", False)
        if self.received > limits.body_bytes:
            raise too_large(limits.body_bytes)
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the response; its headers get the request id."""
        if message["type"] == "http.response.start":
            has_body = self.scope["method"] not in ("GET", "HEAD", "OPTIONS")
            if has_body and self.body_open and message["status"] != 408:
                await self._discard()
            self.status = message["status"]
            extra: list[tuple[bytes, bytes]] = [
                (b"x-request-id", self.request_id.encode()),
                (b"x-content-type-options", b"nosniff"),
                *[(name.encode(), value.encode()) for name, value in self.notices.headers.items()],
            ]
            if self.scope["path"].startswith(ANTHROPIC_PREFIX):
                extra.append((b"request-id", self.request_id.encode()))
            if (self.body_open and has_body) or OVERLOADED in self.scope["state"]:
                extra.append((b"connection", b"close"))  # the rest of the body is not read
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        elif self._head:
            message = {**message, "body": b""}
        else:
            self.sent += len(message.get("body", b""))
        await self._send(message)

    async def fail(self, error: ApiError) -> None:
        """Send an error response; RuntimeError if a response has begun, which closes the connection."""
        if self.status:
            raise RuntimeError(
                "the response had begun"
            ) from error  # closes the connection: the response must not look complete
        body = json.dumps(error_body(error, self.scope["path"], self.request_id)).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body))} | error.headers
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        with suppress(OSError):
            await self.send({"type": "http.response.start", "status": error.status, "headers": pairs})
            await self.send({"type": "http.response.body", "body": body})

    async def _discard(self) -> None:
        """Read the rest of the body for a moment: closing while the client still sends would reset the connection."""
        if any(name == b"expect" for name, _ in self.scope["headers"]):
            return
        left = self.middleware.settings.limits.body_bytes
        with suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_SECONDS):
                while self.body_open and left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    self.body_open = message["type"] == "http.request" and message.get("more_body", False)

    def log(self) -> None:
        """Count the response and write one line to the access log."""
        route = getattr(self.scope.get("route"), "path", "none")
        self.middleware.metrics.requests.labels(route, str(self.status)).inc()
        log_request(self.middleware.settings.access_log, lambda: self._facts(route))

    def _facts(self, route: str) -> Mapping[str, Any]:
        """Return what the access log says of the request: nothing of the prompt or the generated text."""
        client = self.scope.get("client") or ("unknown", 0)
        usage = self.scope["state"].get("key")
        line = {
            "id": self.request_id,
            "client": shown_client(client[0]),
            "method": "HEAD" if self._head else self.scope["method"][:_LOGGED_METHOD],
            "path": shown_path(self.scope["raw_path"]),
            "route": route,
            "status": self.status,
            "seconds": round(time.monotonic() - self.began, 4),
            "received": self.received,
            "sent": self.sent,
        } | self.log_fields
        if usage is not None:
            line["key"] = usage.key.name
        return line | self.notices.log_fields | _client_id(self.scope["headers"])


def canonical(scope: Scope, root_path: str = "") -> Scope:
    """Return a request as the routes know it.

    HEAD is GET, whose body is then left out. A path may begin with ``root_path``, end with a slash, repeat slashes or
    repeat ``/v1``, as base URLs put together with paths do.
    """
    path = below_root(re.sub(r"/{2,}", "/", scope["path"]), root_path)
    path = re.sub(r"^(/v1)+(?=/v1/)", "", path)
    path = path.rstrip("/") or "/"
    return {**scope, "path": path, "method": "GET" if scope["method"] == "HEAD" else scope["method"]}


def too_large(most: int) -> ApiError:
    """Return the error of a body beyond the limit."""
    return ApiError(413, f"body: exceeds {most} bytes; send less, images smaller", code="body_too_large")


def loopback_hosts(host: str, more: Iterable[str]) -> tuple[str, ...]:
    """Return the Host headers that a server bound to ``host`` allows.

    Empty allows all: other machines reach it by names not known here, unless ``more`` names some.
    """
    extra = tuple(more)
    local = ("localhost", "127.0.0.1", "[::1]")
    bound = f"[{host}]" if ":" in host else host
    if bound in local:
        return (*local, *extra)
    return (*local, bound, *extra) if extra else ()


def _check_body(headers: dict[bytes, bytes], most: int) -> None:
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        shown = kind.decode("latin-1")[:80]
        raise ApiError(415, f"Content-Type: {shown!r} is not supported; send application/json", code="not_json")
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length) > most:
        raise too_large(most)


def _client_id(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the id that a client gave its request, for the log; it is beside the server's own, which is unique."""
    given = dict(headers)
    ids = (given.get(name, b"").decode("latin-1") for name in _CLIENT_ID_HEADERS)
    return next(({"client_request_id": each} for each in ids if _CLIENT_ID.fullmatch(each)), {})


def _without_port(host: str) -> str:
    """Return the name or address of a Host header; all of one that is not well-formed, which then is not allowed."""
    found = _HOST.fullmatch(host)
    return found.group(1) if found else host
