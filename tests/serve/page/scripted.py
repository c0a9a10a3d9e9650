"""A server whose answers are written down beforehand, for tests of the page: it says exactly what a test asks it to."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from fathom.serve.http.page_files import page_router

FACTS: dict[str, Any] = {
    "context": 1000,
    "supports_images": True,
    "cache_bytes_per_token": 27648,
    "supports_reasoning": True,
    "sampling_defaults": {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
}
METRICS = (
    "# TYPE fathom_pages_used gauge\nfathom_pages_used 12.0\nfathom_pages_cached 30.0\nfathom_pages_total 120.0\n"
    "fathom_requests_running 1.0\nfathom_requests_waiting 2.0\n"
)


def delta(**fields: Any) -> dict[str, Any]:
    """A chunk that carries part of a message."""
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def text(piece: str) -> dict[str, Any]:
    """A chunk that carries part of a continued text."""
    return {"object": "text_completion", "choices": [{"index": 0, "text": piece, "finish_reason": None}]}


def end(reason: str = "stop", *, total: int = 250) -> list[dict[str, Any]]:
    """The chunks that end an answer."""
    usage = {
        "prompt_tokens": total - 7,
        "completion_tokens": 7,
        "total_tokens": total,
        "prompt_tokens_details": {"cached_tokens": 16},
    }
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
    return [last, {"choices": [], "usage": usage}]


class Script:
    """What the server does next, and what it was asked. ``None`` in the chunks waits for ``go``."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.answers: list[Response | list[Any] | bytes] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.key: str | None = None
        self.facts = dict(FACTS)
        self.models: Response | None = None
        self.go = threading.Event()
        self.left = threading.Event()

    def text(self, *pieces: str, total: int = 250) -> None:
        """Answer the next request with these pieces."""
        self.answers.append([*(delta(content=piece) for piece in pieces), *end(total=total)])

    def hold(self, *pieces: str) -> None:
        """Answer with these pieces and then wait until the client leaves."""
        self.answers.append([*(delta(content=piece) for piece in pieces), None])


def refusal(status: int, message: str, code: str | None = None, **headers: str) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    return JSONResponse({"error": {"message": message, "type": "x", "param": None, "code": code}}, status, headers)


def scripted_app(script: Script) -> FastAPI:
    """Return the page with a server behind it that follows ``script``."""
    app = FastAPI()
    app.include_router(page_router())

    def locked(request: Request) -> Response | None:
        script.keys.append(request.headers.get("authorization"))
        return refusal(401, "no valid key") if script.key and script.keys[-1] != f"Bearer {script.key}" else None

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        model = {"id": "sounder-1b", "object": "model", "max_model_len": 1000, "fathom": script.facts}
        return locked(request) or script.models or JSONResponse({"object": "list", "data": [model]})

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        return locked(request) or Response(METRICS, media_type="text/plain")

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        """A token for each character, which makes counting by hand easy."""
        body = await request.json()
        texts = [body["prompt"]] if "prompt" in body else [message["content"] for message in body["messages"]]
        return locked(request) or JSONResponse({"count": sum(map(len, texts))})

    @app.post("/v1/completions")
    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        script.asked.append(await request.json())
        answer = locked(request) or script.answers.pop(0)
        if isinstance(answer, Response):
            return answer
        return StreamingResponse(_stream(script, answer), media_type="text/event-stream")

    return app


async def _stream(script: Script, answer: list[Any] | bytes) -> AsyncIterator[bytes]:
    try:
        if isinstance(answer, bytes):
            for place in range(len(answer)):
                yield answer[place : place + 1]
            return
        for chunk in answer:
            if chunk is None:
                while not script.go.is_set():
                    await asyncio.sleep(0.01)
            else:
                yield b"data: " + json.dumps(chunk).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"
    except asyncio.CancelledError:
        script.left.set()
        raise


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Run an app on a free port of this machine; yield its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        config = uvicorn.Config(app, log_level="error", ws="none", lifespan="on", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)
