"""What /health, /ready and the metrics say of an engine that makes no progress."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.serve.serving import Running, Serve, wait_until
from tests.serve.test_disconnect import LONG, ask


def statuses(server: Running) -> tuple[int, int]:
    with server.http() as http:
        return http.get("/health").status_code, http.get("/ready").status_code


def test_an_engine_that_has_requests_but_does_not_step_is_unhealthy_until_it_does(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(stall_timeout_seconds=0.2) as server, server.http() as http:
        free = threading.Event()
        engine = server.service.worker.engine
        step: Callable[[], Any] = engine.step
        monkeypatch.setattr(engine, "step", lambda: step() if free.wait(60) else pytest.fail("held too long"))
        assert statuses(server) == (200, 200)  # idle is not stalled
        connection = ask(server.port, LONG | {"max_tokens": 5})
        try:
            assert wait_until(lambda: statuses(server) == (503, 503))
            for path in ("/health", "/ready"):
                assert "has not finished a step for" in http.get(path).json()["status"]
            assert server.metric("fathom_engine_stalled_seconds") > 0.2
        finally:
            free.set()
        assert connection.recv(12) == b"HTTP/1.1 200"
        connection.close()
        assert server.idle()
        assert wait_until(lambda: statuses(server) == (200, 200))
        assert server.metric("fathom_engine_stalled_seconds") == 0


def test_an_engine_whose_thread_has_ended_is_unhealthy_with_the_reason(serve: Serve) -> None:
    with serve() as server, server.http() as http:
        server.service.worker.close()
        answer = http.get("/health")
        assert answer.status_code == 503
        assert answer.json()["status"].startswith("the engine has stopped")
