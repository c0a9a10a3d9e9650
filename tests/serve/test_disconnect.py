"""Clients that leave, and servers that do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fathom.serve.settings import Limits
from tests.serve.serving import Running, Serve, wait_until
from tests.slow_cases import fast

JSON = "Content-Type: application/json"
LONG: dict[str, Any] = {"prompt": "The river", "max_tokens": 500, "ignore_eos": True, "logit_bias": {"1": -100}}


def ask(port: int, body: dict[str, Any], path: str = "/v1/completions") -> socket.socket:
    content = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


@pytest.mark.usefixtures("slow_steps")
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_gives_its_pages_back_at_once(server: Running, stream: bool) -> None:
    generated = server.service.worker.stats.generated_tokens
    connections = [ask(server.port, LONG | {"stream": stream, "n": 2}) for _ in range(4)]
    assert wait_until(lambda: server.service.worker.stats.running == 8)
    for connection in connections:
        connection.close()
    assert server.idle()
    assert server.service.worker.stats.generated_tokens - generated < 8 * LONG["max_tokens"]
    assert server.metric("fathom_pages_used") == 0
    assert server.service.worker.engine.leaked_pages == 0


@pytest.mark.usefixtures("slow_steps")
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/messages", {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 500}),
        ("/v1/responses", {"input": "a", "max_output_tokens": 500}),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_every_interface_gives_pages_back_when_its_client_leaves(
    server: Running, path: str, fields: dict[str, Any], stream: bool
) -> None:
    connection = ask(server.port, fields | {"stream": stream}, path)
    assert wait_until(lambda: server.service.worker.stats.running == 1)
    connection.close()
    assert server.idle()
    assert server.metric("fathom_pages_used") == 0


def test_a_client_that_leaves_before_its_body_is_whole_costs_nothing(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )
    assert server.idle()
    assert wait_until(lambda: server.metric("fathom_http_requests_total") > 0)


def test_a_stop_string_ends_one_choice_in_the_engine_too(server: Running) -> None:
    asked = LONG | {"n": 2, "seed": 11, "temperature": 1.0, "max_tokens": 400}
    with server.http() as http:
        short, long = (choice["text"] for choice in http.post("/v1/completions", json=asked).json()["choices"])
        stop = next(short[at : at + 3] for at in range(len(short)) if short[at : at + 3] not in long)
        generated = server.service.worker.stats.generated_tokens
        ended = http.post("/v1/completions", json=asked | {"stop": stop}).json()
    assert [choice["finish_reason"] for choice in ended["choices"]] == ["stop", "length"]
    assert ended["choices"][1]["text"] == long
    assert server.idle()
    assert server.service.worker.stats.generated_tokens - generated < 600


@contextmanager
def process(directory: Path, *options: str, files: int | None = None) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run ``fathom serve`` as a process of its own, which may open ``files``; yields it and its port."""
    command = [sys.executable, "-m", "fathom", "serve", str(directory), "--port", "0", "--device", "cpu", *options]
    if files is not None:
        command = ["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    lines: list[str] = []
    try:
        assert running.stderr is not None
        for line in running.stderr:
            lines.append(line)
            if "serving" in line:
                break
        else:
            raise AssertionError("".join(lines))
        rest = threading.Thread(target=lambda: lines.extend(running.stderr or ()))
        rest.start()
        yield running, int(line.partition("127.0.0.1:")[2].partition(" ")[0])
    finally:
        if running.poll() is None:
            running.kill()
        running.wait(30)
        rest.join(30)
        assert running.stderr is not None
        running.stderr.close()
    assert not [text for text in lines if "Traceback" in text], "".join(lines)


def stream_events(port: int, body: dict[str, Any], found: list[str]) -> None:
    with (
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http,
        http.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer,
    ):
        found.append(str(answer.status_code))
        found.extend(line for line in answer.iter_lines() if line)


def streams(port: int, count: int, body: dict[str, Any]) -> tuple[list[list[str]], list[threading.Thread]]:
    found: list[list[str]] = [[] for _ in range(count)]
    threads = [threading.Thread(target=stream_events, args=(port, body, events)) for events in found]
    for thread in threads:
        thread.start()
    return found, threads


def settled(events: list[str]) -> str:
    """How a stream ended: whole, with an error, or cut."""
    if events and events[-1] == "data: [DONE]":
        return "whole"
    if events and '"error"' in events[-1]:
        return json.loads(events[-1].removeprefix("data: "))["error"]["code"]  # type: ignore[no-any-return]
    return "cut"


@pytest.mark.parametrize(
    ("drain", "expected"), fast([("60", {"whole"}), ("0.1", {"whole", "draining"})], [("60", {"whole"})])
)
def test_a_stopped_server_ends_every_stream_and_leaves_with_zero(
    directory: Path, drain: str, expected: set[str]
) -> None:
    with process(directory, "--drain-seconds", drain, "--max-batch", "8") as (running, port):
        found, threads = streams(port, 20, LONG | {"max_tokens": 400})
        assert wait_until(lambda: all(found))
        running.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert running.wait(60) == 0
        assert {events[0] for events in found} == {"200"}
        ends = {settled(events) for events in found}
        assert ends <= expected
        assert drain == "60" or "draining" in ends


@pytest.mark.slow
def test_a_second_signal_leaves_at_once(directory: Path) -> None:
    with process(directory, "--drain-seconds", "60") as (running, port):
        connection = ask(port, LONG | {"stream": True, "n": 8})
        connection.recv(10)
        running.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == -signal.SIGTERM
        connection.close()


@pytest.mark.usefixtures("slow_steps")
def test_a_client_that_takes_nothing_is_not_waited_for(serve: Serve) -> None:
    with serve(limits=Limits(write_timeout_seconds=0.2)) as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", server.port))
        body = json.dumps(LONG | {"stream": True, "n": 16, "logprobs": 20, "max_tokens": 480}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\n{JSON}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        connection.sendall(head + body)
        assert wait_until(lambda: server.service.worker.stats.running == 16)
        assert server.idle()
        assert server.service.worker.stats.generated_tokens < 16 * 480
        connection.close()
