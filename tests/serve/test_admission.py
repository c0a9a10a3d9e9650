"""The limit on requests in progress, with many at the same moment and clients that leave at any point."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from fathom.serve.admission import AdmissionControl
from fathom.serve.api import chat, completions
from fathom.serve.errors import ApiError, ClientDisconnected
from fathom.serve.http.middleware import RequestMiddleware
from fathom.serve.key_usage import KeyRing
from fathom.serve.metrics import Metrics
from fathom.serve.settings import Limits, ServeSettings
from fathom.spec.engine import EngineSpec
from tests.serve.serving import Running, Serve, wait_until
from tests.serve.test_disconnect import LONG, ask

ROUTES = {
    "/v1/completions": {"prompt": "The river", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
}


class Gate:
    """Holds every preparation of a prompt until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting = 0
        self._open = threading.Event()
        monkeypatch.setattr(completions, "prepare_text", self._held(completions.prepare_text))
        monkeypatch.setattr(chat, "prepare_chat", self._held(chat.prepare_chat))

    def open(self) -> None:
        self._open.set()

    def _held(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        def held(*arguments: Any, **options: Any) -> Any:
            self.waiting += 1
            assert self._open.wait(60)
            return prepare(*arguments, **options)

        return held


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    found = Gate(monkeypatch)
    yield found
    found.open()


def most_in_progress(server: Running, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record how many requests are in progress each time one is taken."""
    metrics, seen = server.service.metrics, [0]
    begin = metrics.begin

    def counted() -> None:
        begin()
        seen.append(metrics.in_progress)

    monkeypatch.setattr(metrics, "begin", counted)
    return seen


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("stream", [True, False])
def test_of_many_requests_at_the_same_moment_no_more_than_the_limit_are_taken(
    serve: Serve, gate: Gate, monkeypatch: pytest.MonkeyPatch, path: str, stream: bool
) -> None:
    with serve(limits=Limits(max_concurrent_requests=3)) as server:
        seen = most_in_progress(server, monkeypatch)

        def post(_: int) -> int:
            with server.http() as http:
                return http.post(path, json=ROUTES[path] | {"stream": stream}).status_code

        with ThreadPoolExecutor(12) as clients:
            answers = [clients.submit(post, number) for number in range(12)]
            assert wait_until(lambda: sum(answer.done() for answer in answers) == 9)
            assert {answer.result() for answer in answers if answer.done()} == {429}
            gate.open()
            assert sorted(answer.result(60) for answer in answers) == [200] * 3 + [429] * 9
        assert max(seen) == 3
        assert server.idle()


def test_a_client_that_leaves_while_its_prompt_is_prepared_frees_its_place_at_once(serve: Serve, gate: Gate) -> None:
    with serve(limits=Limits(max_concurrent_requests=1)) as server:
        prompts = server.service.worker.stats.prompt_tokens
        for round_ in (1, 2):
            connection = ask(server.port, LONG | {"stream": round_ == 1})
            assert wait_until(lambda round_=round_: gate.waiting == round_)  # type: ignore[misc]
            connection.close()
            assert wait_until(lambda: server.service.metrics.in_progress == 0)
        assert server.service.executor.pending == 2  # its thread cannot be stopped, and is still counted
        gate.open()
        assert wait_until(lambda: server.service.executor.pending == 0)
        with server.http() as http:
            assert http.post("/v1/completions", json=ROUTES["/v1/completions"]).status_code == 200
        assert server.idle()
        assert server.service.worker.stats.prompt_tokens - prompts <= 4  # abandoned requests are not run


@pytest.mark.usefixtures("slow_steps")
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99, 1.0])
def test_a_client_that_leaves_amid_its_request_or_answer_frees_its_place(
    server: Running, stream: bool, share: float
) -> None:
    body = json.dumps(LONG | {"stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    sent = head.encode() + b"\r\n\r\n" + body
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall(sent[: int(len(sent) * share)])
    if share == 1.0:
        assert wait_until(lambda: server.service.worker.stats.running == 1)
    connection.close()
    assert server.idle()


def test_a_request_that_is_refused_after_it_was_taken_frees_its_place(serve: Serve) -> None:
    engine = EngineSpec(max_batch=1, cache_tokens=1024, page_size=16)
    limits = Limits(max_concurrent_requests=1)
    with serve(engine, max_waiting=1, limits=limits) as server, server.http() as http:
        for body, status in (
            ({"n": 100}, 400),
            ({"n": 3}, 429),
            ({"logit_bias": {"x": 1}}, 400),
            ({"guided_regex": "("}, 400),
            ({}, 200),
        ):
            answer = http.post("/v1/completions", json=ROUTES["/v1/completions"] | body)
            assert answer.status_code == status, answer.text
            assert wait_until(lambda: server.service.metrics.in_progress == 0)


@pytest.mark.parametrize(
    ("max_batch", "max_waiting"),
    [(1, 1), (3, 2), pytest.param(32, 256, marks=pytest.mark.slow)],
)
def test_a_batch_and_the_queue_together_are_served_at_once_and_no_more(
    serve: Serve, max_batch: int, max_waiting: int
) -> None:
    """However the requests arrive: the engine does not step until all have, and once more while it does."""
    engine = EngineSpec(max_batch=max_batch, cache_tokens=1024, page_size=16)
    most = max_batch + max_waiting
    with serve(engine, max_waiting=max_waiting, limits=Limits.admitting(most + 1)) as server:
        worker, free = server.service.worker, threading.Event()

        async def ask(http: httpx2.AsyncClient) -> httpx2.Response:
            return await http.post("/v1/completions", json={"prompt": "The river", "max_tokens": 3})

        async def burst(*, held: bool) -> None:
            limits = httpx2.Limits(max_connections=None)
            async with httpx2.AsyncClient(base_url=server.url, timeout=60, limits=limits, trust_env=False) as http:
                asked = [asyncio.create_task(ask(http)) for _ in range(most)]
                while held and len(worker._incoming) + len(worker._listeners) < most:
                    await asyncio.sleep(0.005)
                    assert not any(task.done() for task in asked)
                more = await ask(http) if held else None
                free.set()
                answers = await asyncio.gather(*asked)
            assert [answer.status_code for answer in answers] == [200] * most
            assert more is None or (more.status_code, more.json()["error"]["code"]) == (429, "queue_full")

        def hold() -> Iterator[None]:
            assert free.wait(60)
            yield

        worker.interleave(hold(), lambda error: None)
        asyncio.run(burst(held=True))
        asyncio.run(burst(held=False))
        assert server.idle()


def test_admitting_limits_hold_for_any_batch_and_queue_unless_they_are_given() -> None:
    assert Limits.admitting(288) == Limits()
    large = Limits.admitting(2000, connections_per_client=9, max_preprocessing=None)
    assert (large.max_concurrent_requests, large.max_preprocessing, large.connections_per_client) == (2000, 2000, 9)


@pytest.mark.parametrize("error", [None, ApiError(400, "no"), ClientDisconnected(), OSError(), CancelledError()])
def test_a_place_is_freed_however_a_request_ends(error: BaseException | None) -> None:
    metrics = Metrics(dict)
    admission = AdmissionControl(1, metrics, lambda: 7)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        slot = admission.acquire()
        scope["state"]["cleanup"].callback(slot.release)
        with pytest.raises(ApiError, match="try again in 7 s") as full:
            admission.acquire()
        assert (full.value.status, full.value.retry_after) == (429, 7)
        if error is not None:
            raise error
        slot.release()

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"", "headers": []}
    middleware = RequestMiddleware(app, ServeSettings(), metrics, KeyRing(ServeSettings(), {}, metrics))
    task = middleware(scope, receive, send)
    if isinstance(error, CancelledError):
        with pytest.raises(CancelledError):
            asyncio.run(task)  # type: ignore[arg-type]
    else:
        asyncio.run(task)  # type: ignore[arg-type]
    assert metrics.in_progress == 0
    admission.acquire()
