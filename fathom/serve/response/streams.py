"""Answers on their way: collected into one body, or sent as events while they are drawn.

Each answer has one task that watches for its client leaving, and none per token.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from fathom.serve.admission import RequestSlot
from fathom.serve.engine_client import OutputQueue
from fathom.serve.errors import ApiError, ClientDisconnected, draining
from fathom.serve.lifecycle import Lifecycle
from fathom.serve.metrics import Metrics
from fathom.serve.response.choices import Choice

T = TypeVar("T")
_HEAD = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseMetadata:
    """What all parts of an answer say of themselves: ``kind`` is the ``object`` field of whole answers."""

    answer_id: str
    kind: str
    model: str
    created: int

    def facts(self, kind: str) -> dict[str, Any]:
        """Return the fields that every body begins with."""
        return {"id": self.answer_id, "object": kind, "created": self.created, "model": self.model}


class ResponseState:
    """One HTTP request's answers while they are drawn."""

    def __init__(
        self,
        choices: Sequence[Choice],
        output_queue: OutputQueue,
        label: ResponseMetadata,
        metrics: Metrics,
        lifecycle: Lifecycle,
        *,
        slot: RequestSlot,
        began: float,
        per_prompt: int,
    ) -> None:
        self.choices, self.output_queue, self.label = choices, output_queue, label
        self.metrics, self.lifecycle = metrics, lifecycle
        self._of = dict(zip(output_queue.request_ids, choices, strict=True))
        self._open = len(choices)
        self._began = began
        self._timed: dict[int, tuple[int, float]] = {}
        self._per_prompt = per_prompt
        self._slot = slot
        self._closed = False

    @property
    def ended(self) -> bool:
        """Whether all choices have ended."""
        return self._open == 0

    async def advance(self) -> list[Choice]:
        """Take what the engine drew; return the choices that have something new.

        Raises:
            ApiError: the engine could not go on.
            ClientDisconnected: nobody reads on.
        """
        touched: dict[int, Choice] = {}
        for output in await self.output_queue.take():
            choice = self._of[output.request_id]
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
            self._time(choice)
        return list(touched.values())

    def usage(self) -> dict[str, Any]:
        """Count tokens; a prompt that has several answers counts once."""
        prompts = self.choices[:: self._per_prompt]
        read, drawn = sum(c.prompt_tokens for c in prompts), sum(c.generated for c in self.choices)
        return {
            "prompt_tokens": read,
            "completion_tokens": drawn,
            "total_tokens": read + drawn,
            "prompt_tokens_details": {"cached_tokens": sum(c.cached_tokens for c in prompts)},
            "completion_tokens_details": {"reasoning_tokens": sum(c.reasoning for c in self.choices)},
        }

    def close(self) -> None:
        """Cancel whatever still runs, which frees its pages, and release the slot; once is enough."""
        if not self._closed:
            self._closed = True
            self.output_queue.cancel()
            self._slot.release(answered=True)

    def _time(self, choice: Choice) -> None:
        """Note how long a choice's new tokens took."""
        now, (tokens, last) = time.monotonic(), self._timed.get(choice.index, (0, 0.0))
        if choice.generated == tokens:
            return
        if last:
            self.metrics.between.observe((now - last) / (choice.generated - tokens))
        else:
            self.metrics.first.observe(now - self._began)
        self._timed[choice.index] = choice.generated, now


@asynccontextmanager
async def cancel_on_disconnect(answer: ResponseState, receive: Receive) -> AsyncIterator[None]:
    """Let the answer know when its client leaves, and close it on leaving."""
    watcher = asyncio.ensure_future(_disconnected(receive))
    watcher.add_done_callback(lambda _: answer.output_queue.leave())
    try:
        yield
    finally:
        watcher.cancel()
        answer.close()


async def run_until_disconnect(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """Return what ``work`` returns, but wait no longer than the client does. The body must have been read.

    Raises:
        ClientDisconnected: the client left before; ``work`` is cancelled.
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


async def collect(answer: ResponseState, receive: Receive) -> Response:
    """Wait for all of it and return one body."""
    async with cancel_on_disconnect(answer, receive):
        while not answer.ended:
            await answer.advance()
    body = answer.label.facts(answer.label.kind) | {
        "choices": [choice.whole() for choice in answer.choices],
        "usage": answer.usage(),
        "system_fingerprint": None,
    }
    return JSONResponse(body)


class WriteTimeout:
    """Ends the task that enters it once one write has taken ``seconds`` or more, at most twice as long.

    One timer for a whole stream: one for each write would cost a seventh of all the work on it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False

    async def __aenter__(self) -> None:
        self._task = asyncio.current_task()
        self._look()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> bool:
        if self._timer is not None:
            self._timer.cancel()
        if self._ended and self._task is not None and kind is asyncio.CancelledError:
            self._task.uncancel()
            return True
        return False

    def begin(self) -> None:
        """A write begins."""
        self._since = time.monotonic()

    def end(self) -> None:
        """It has been taken."""
        self._since = None

    def _look(self) -> None:
        if self._since is not None and time.monotonic() - self._since >= self._seconds and self._task is not None:
            self._ended = self._task.cancel()
            return
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._look)


class EventStream(Response):
    """Sends an answer as server-sent events: chunks, the token counts if asked for, and ``[DONE]``.

    An error on the way is sent as an event of its own, and ends the stream without ``[DONE]``.
    """

    def __init__(self, answer: ResponseState, chunk_kind: str, *, usage: bool, write_timeout_seconds: float) -> None:
        super().__init__()
        self._answer = answer
        self._usage = usage
        self._patience = WriteTimeout(write_timeout_seconds)
        self._facts = answer.label.facts(chunk_kind) | {"system_fingerprint": None}
        self._before = f'data: {json.dumps(self._facts)[:-1]}, "choices":['
        self._after = '],"usage":null}\n\n' if usage else "]}\n\n"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it."""
        answer, patience = self._answer, self._patience
        async with cancel_on_disconnect(answer, receive), patience:
            await send({"type": "http.response.start", "status": 200, "headers": _HEAD})
            try:
                while not answer.ended:
                    text = "".join(
                        f"{self._before}{piece}{self._after}"
                        for choice in await answer.advance()
                        for piece in choice.pieces()
                    )
                    if text:
                        await self._write(send, text)
                last = self._counts() if self._usage else ""
                await self._write(send, f"{last}data: [DONE]\n\n", ends=True)
            except ApiError as error:
                await self._write(send, f"data: {json.dumps(error.body)}\n\n", ends=True)
            except ClientDisconnected:
                scope["state"]["facts"] = {"left": True}
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        scope["state"].setdefault("facts", {}).update(tokens=sum(c.generated for c in answer.choices))

    async def _write(self, send: Send, text: str, *, ends: bool = False) -> None:
        self._patience.begin()
        await send({"type": "http.response.body", "body": text.encode(), "more_body": not ends})
        self._patience.end()

    def _counts(self) -> str:
        return f"data: {json.dumps(self._facts | {'choices': [], 'usage': self._answer.usage()})}\n\n"
