"""Responses: collected into one JSON body, or streamed as server-sent events while tokens are generated.

One task per response waits for the client to disconnect; there is none per token.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fathom.serve.admission import RequestSlot
from fathom.serve.engine_client import OutputQueue
from fathom.serve.errors import ApiError, ClientDisconnected, draining
from fathom.serve.http.json_response import json_response
from fathom.serve.lifecycle import Lifecycle
from fathom.serve.metrics import LatencyMetrics
from fathom.serve.response.answer import Choice
from fathom.serve.response.encoder import ResponseEncoder, Usage

T = TypeVar("T")
_LARGE_TOKENS = 4096
"""Responses of prompts and answers of more tokens are written in a thread."""
_HEAD = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ResponseState:
    """One HTTP request's choices while they are generated."""

    def __init__(
        self,
        choices: Sequence[Choice],
        output_queue: OutputQueue,
        encoder: ResponseEncoder,
        latency: LatencyMetrics,
        lifecycle: Lifecycle,
        *,
        slot: RequestSlot,
        began: float,
        per_prompt: int,
    ) -> None:
        self.choices, self.output_queue, self.encoder = choices, output_queue, encoder
        self.latency, self.lifecycle = latency, lifecycle
        self._choice_by_id = dict(zip(output_queue.request_ids, choices, strict=True))
        self._open = len(choices)
        self._began = began
        self._timed: dict[int, tuple[int, float]] = {}
        self._first_token_at: float | None = None
        self._per_prompt = per_prompt
        self._slot = slot
        self._closed = False

    @property
    def ended(self) -> bool:
        """Whether all choices are finished."""
        return self._open == 0

    async def advance(self) -> list[Choice]:
        """Wait for outputs of the engine, add them to their choices, and return the choices that changed.

        Raises:
            ApiError: the engine failed at a request, or the server is shutting down.
            ClientDisconnected: the client left.
        """
        touched: dict[int, Choice] = {}
        for output in await self.output_queue.get():
            choice = self._choice_by_id[output.request_id]
            if choice.finish_reason is not None:
                continue
            try:
                choice.push(output)
            except ApiError:
                if self.lifecycle.draining:
                    raise draining(1) from None
                raise
            if choice.finish_reason is not None:
                self._open -= 1
                if output.finish_reason is None:
                    self.output_queue.cancel([output.request_id])
            touched[choice.index] = choice
        for choice in touched.values():
            self._observe_latency(choice)
        return list(touched.values())

    def usage(self) -> Usage:
        """Return the token counts so far."""
        return Usage.of(self.choices, self._per_prompt)

    @property
    def log_fields(self) -> dict[str, Any]:
        """What the access log says of the answers; times in seconds."""
        usage = self.usage()
        found: dict[str, Any] = {"cached_tokens": usage.cached, "completion_tokens": usage.completion}
        if self._first_token_at is not None:
            found["first_token_seconds"] = round(self._first_token_at - self._began, 4)
            seconds = max(last for _, last in self._timed.values()) - self._first_token_at
            if seconds > 0:
                found["tokens_per_second"] = round((usage.completion - 1) / seconds, 1)
        return found

    def close(self) -> None:
        """Cancel unfinished requests, which frees their pages, and release the slot. Idempotent."""
        if not self._closed:
            self._closed = True
            self.output_queue.cancel()
            self._slot.release(answered=True)

    def _observe_latency(self, choice: Choice) -> None:
        """Record the latency of a choice's new tokens."""
        now, (tokens, last) = time.monotonic(), self._timed.get(choice.index, (0, 0.0))
        if choice.generated == tokens:
            return
        if last:
            self.latency.inter_token_latency.observe((now - last) / (choice.generated - tokens))
        else:
            self.latency.time_to_first_token.observe(now - self._began)
            self._first_token_at = self._first_token_at or now
        self._timed[choice.index] = choice.generated, now


@asynccontextmanager
async def cancel_on_disconnect(state: ResponseState, receive: Receive) -> AsyncIterator[None]:
    """Notify ``state`` when its client disconnects, and close it at the end."""
    watcher = asyncio.ensure_future(_disconnected(receive))
    watcher.add_done_callback(lambda _: state.output_queue.disconnect())
    try:
        yield
    finally:
        watcher.cancel()
        state.close()


async def run_until_disconnect(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """Return the result of ``work``, unless the client leaves first. The request body must have been read.

    Raises:
        ClientDisconnected: the client left; ``work`` is cancelled.
    """
    running, watcher = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((running, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            raise ClientDisconnected
        return running.result()
    finally:
        watcher.cancel()
        running.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def collect(state: ResponseState, receive: Receive) -> Response:
    """Wait until all choices are finished and return one JSON response."""
    async with cancel_on_disconnect(state, receive):
        while not state.ended:
            await state.advance()
    usage = state.usage()
    large = state.encoder.large or usage.prompt + usage.completion > _LARGE_TOKENS
    return await json_response(state.encoder.body(usage), large=large)


class EventStream(Response):
    """Sends a response as server-sent events; an error while streaming is sent as an event and ends the stream."""

    def __init__(self, state: ResponseState) -> None:
        super().__init__()
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream until its end, an error or the client's disconnect."""
        state, encoder = self._state, self._state.encoder
        async with cancel_on_disconnect(state, receive):
            await send({"type": "http.response.start", "status": 200, "headers": _HEAD})
            try:
                if begun := encoder.begin():
                    await _write(send, begun)
                while not state.ended:
                    text = "".join([encoder.update(choice) for choice in await state.advance()])
                    if text:
                        await _write(send, text)
                await _write(send, encoder.end(state.usage()), ends=True)
            except ApiError as error:
                await _write(send, encoder.error(error), ends=True)
            except ClientDisconnected:
                scope["state"]["log_fields"]["disconnected"] = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _write(send: Send, text: str, *, ends: bool = False) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": not ends})
