from __future__ import annotations

import json
import re
import socket
import time
from typing import Any

import openai
import pytest

from fathom.serve.settings import Limits
from fathom.spec.engine import EngineSpec
from tests.serve.serving import NAME, Running, Serve, raw, wait_until

KEYS = ("first-key-of-two", "second-key-of-two")


def request(path: str, body: bytes, *headers: str, host: str = "127.0.0.1") -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


JSON = "Content-Type: application/json"


def test_clients_raise_their_own_errors(client: openai.OpenAI, server: Running) -> None:
    hello: list[Any] = [{"role": "user", "content": "a"}]
    with pytest.raises(openai.NotFoundError, match="use 'tiny'"):
        client.chat.completions.create(model="gpt-9", messages=hello)
    with pytest.raises(openai.BadRequestError, match="> 511 maximum") as caught:
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "a b" * 600}])
    assert caught.value.code == "context_length_exceeded"
    message = str(caught.value)  # the words that Claude Code and LiteLLM look for
    assert re.search(r"prompt is too long: \d+ tokens > \d+ maximum", message)
    assert "this model's maximum context length is " in message
    with pytest.raises(openai.NotFoundError, match="no such route"):
        client.moderations.create(input="a")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[]", "body"),
        (b"\xff\xfe", "JSON"),
        (b'{"messages": []}', "messages"),
        (b'{"messages": [{"role": "user", "content": 3}]}', "messages[0].content"),
        (b'{"messages": [{"role": "robot", "content": "a"}]}', "messages[0].role"),
        (b'{"messages": [{"role": "user"}]}', "messages[0].content"),
        (b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', "messages[0].content[0].text"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "JSON"),
        (b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', "temperature"),
        (b'{"messages": ' + b"[" * 30_000, "JSON"),
        (b'{"messages": [{"role": "user", "content": "a"}], "top_logprobs": 3}', "top_logprobs"),
    ],
)
def test_a_fault_in_the_body_is_located(server: Running, body: bytes, words: str) -> None:
    with server.http() as http:
        answer = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]


def test_only_json_is_read_so_that_no_form_of_a_web_page_can_ask(server: Running) -> None:
    with server.http() as http:
        answer = http.post("/v1/completions", content=b'{"prompt": "a"}', headers={"content-type": "text/plain"})
    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]["message"]


def test_routes_and_methods_that_are_not_there_are_refused_in_the_same_format(server: Running) -> None:
    with server.http() as http:
        assert http.get("/v2").json()["error"]["code"] == "no_route"
        wrong = http.get("/v1/completions")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        assert http.get("/v1/models/other").status_code == 404
        assert http.get(f"/v1/models/{NAME}").json()["id"] == NAME
        assert http.get("/v1/models").json()["data"][0]["max_model_len"] == 512


def test_keys_guard_everything_but_the_state_and_the_page(serve: Serve) -> None:
    with serve(api_keys=KEYS) as server:
        with server.http() as http:
            for path in ("/v1/models", "/metrics", "/openapi.json", "/tokenizer_info", "/nowhere"):
                assert http.get(path).status_code == 401
                assert http.get(path).headers["www-authenticate"] == "Bearer"
            for path in ("/health", "/ready"):
                assert http.get(path).status_code == 200
            assert http.get("/").status_code != 401
            for wrong in ("Bearer", "Bearer first", f"Basic {KEYS[0]}", KEYS[0], f"Bearer {KEYS[0]}x"):
                assert http.get("/v1/models", headers={"authorization": wrong}).status_code == 401
        for key in KEYS:
            with server.client(key) as client:
                assert client.models.list().data[0].id == NAME
        with server.client("not-a-key") as client, pytest.raises(openai.AuthenticationError, match="Bearer"):
            client.models.list()


def test_a_wrong_host_header_is_refused_on_loopback(serve: Serve) -> None:
    hosts = ("localhost", "127.0.0.1", "[::1]", "mine.example")
    with serve(allowed_hosts=hosts) as server:
        body = b'{"prompt": "a", "max_tokens": 1}'
        for host, expected in (
            ("evil.example", 400),
            ("127.0.0.1.evil.example", 400),
            ("localhost:1", 200),
            ("[::1]:80", 200),
            ("MINE.example", 200),
        ):
            assert status(raw(server.port, request("/v1/completions", body, JSON, host=host))) == expected, host


def test_pages_elsewhere_may_ask_only_where_allowed(server: Running, serve: Serve) -> None:
    origin = {"origin": "https://page.example", "access-control-request-method": "POST"}
    with server.http() as http:
        answer = http.request("OPTIONS", "/v1/completions", headers=origin)
        assert "access-control-allow-origin" not in answer.headers
    with serve(cors_origins=("https://page.example",)) as open_one, open_one.http() as http:
        answer = http.request("OPTIONS", "/v1/completions", headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        other = http.request("OPTIONS", "/v1/completions", headers=origin | {"origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


@pytest.fixture(scope="module")
def strict(serve: Serve) -> Any:
    limits = Limits(
        body_bytes=4000,
        header_bytes=1000,
        n=3,
        choices=4,
        logprobs=2,
        prompt_tokens=20,
        messages=3,
        tools=1,
        schema_bytes=300,
        stop_strings=2,
        logit_bias=2,
        images=1,
        image_bytes=64,
        body_timeout_seconds=0.5,
    )
    with serve(limits=limits) as server:
        yield server


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
WIDE = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(30)}}
HELLO = {"role": "user", "content": "a"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 600}}


@pytest.mark.parametrize(
    ("status", "words", "body"),
    [
        (400, "n: 4 exceeds 3", {"n": 4}),
        (400, "top_logprobs: 3 exceeds 2", {"logprobs": True, "top_logprobs": 3}),
        (400, "> 20 maximum", {"messages": [{"role": "user", "content": "zq" * 40}]}),
        (400, "messages: 4 exceeds 3", {"messages": [HELLO] * 4}),
        (400, "tools: 2 exceeds 1", {"tools": [TOOL, TOOL]}),
        (400, "300", {"tools": [{"type": "function", "function": {"name": "f", "parameters": WIDE}}]}),
        (400, "300", {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": WIDE}}}),
        (400, "300", {"guided_regex": "a" * 301}),
        (400, "stop: 3 texts exceed 2", {"stop": ["a", "b", "c"]}),
        (400, "logit_bias: 3 entries exceed 2", {"logit_bias": {"1": 1, "2": 1, "3": 1}}),
        (400, "messages: 2 exceeds 1", {"messages": [{"role": "user", "content": [IMAGE, IMAGE]}]}),
        (413, "64 bytes", {"messages": [{"role": "user", "content": [IMAGE]}]}),
        (413, "4000 bytes", {"messages": [{"role": "user", "content": "a" * 5000}]}),
    ],
)
def test_every_limit_says_what_to_change(strict: Running, status: int, words: str, body: dict[str, Any]) -> None:
    with strict.http() as http:
        answer = http.post("/v1/chat/completions", json={"messages": [HELLO], **body})
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]


def test_prompts_times_n_are_limited(strict: Running) -> None:
    with strict.http() as http:
        answer = http.post("/v1/completions", json={"prompt": ["a"] * 3, "n": 2})
    assert answer.status_code == 400
    assert "4 choices" in answer.json()["error"]["message"]


def test_a_body_is_counted_as_it_streams(strict: Running) -> None:
    lines = ["POST /tokenize HTTP/1.1", "Host: a", JSON, "Connection: close", "Transfer-Encoding: chunked", "", ""]
    head = "\r\n".join(lines).encode()
    chunk = b"3e8\r\n" + b" " * 1000 + b"\r\n"
    answer = raw(strict.port, head, *[chunk] * 5, b"0\r\n\r\n")
    assert status(answer) == 413
    assert b"4000 bytes" in answer


def test_a_body_that_never_comes_is_not_waited_for(strict: Running) -> None:
    head = f"POST /tokenize HTTP/1.1\r\nHost: a\r\n{JSON}\r\nContent-Length: 10\r\n\r\n{{".encode()
    assert status(raw(strict.port, head)) == 408


def test_large_headers_are_refused(strict: Running) -> None:
    with strict.http() as http:
        for headers, path in (({"x": "a" * 900}, "/health"), ({}, "/health?" + "a" * 900)):
            answer = http.get(path, headers=headers)
            assert answer.status_code == 431
            assert "1000" in answer.json()["error"]["message"]
    assert status(raw(strict.port, b"GET /health HTTP/1.1\r\nHost: a\r\nx: ", *[b"a" * 3000] * 3, pause=0.05)) == 431


def test_images_come_as_data_and_never_from_a_path_or_an_unnamed_host(server: Running) -> None:
    for url in ("/etc/passwd", "file:///etc/passwd", "http://127.0.0.1/a.png", "https://example.com/a.png"):
        message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
        with server.http() as http:
            answer = http.post("/v1/chat/completions", json={"messages": [message]})
        assert answer.status_code == 400
        assert "data: URI" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "kind", "expected"),
    [("/v1/audio/speech", JSON, 404), ("/health", JSON, 405), ("/v1/completions", "Content-Type: text/plain", 415)],
)
def test_a_refusal_reaches_a_client_that_is_still_sending(server: Running, path: str, kind: str, expected: int) -> None:
    sent = request(path, b" " * 2_000_000, kind)
    head = sent.index(b"\r\n\r\n") + 4
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        for part in (sent[:head], sent[head:]):
            connection.sendall(part)
            time.sleep(0.1)  # the server has the headers, and would have closed the connection by now
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
    assert status(received) == expected


@pytest.mark.usefixtures("slow_steps")
def test_a_full_queue_is_refused_with_a_retry_after(serve: Serve) -> None:
    spec = EngineSpec(max_batch=1, cache_tokens=1024, page_size=16)
    with serve(spec, max_waiting=2) as server, server.http() as http:
        body = {"prompt": "The", "max_tokens": 480, "ignore_eos": True, "stream": True}
        streams = [open_stream(server, body) for _ in range(2)]
        assert wait_until(lambda: server.service.worker.stats.running == 1)
        full = http.post("/v1/completions", json=body | {"stream": False, "n": 2})
        assert full.status_code == 429, full.text
        assert int(full.headers["retry-after"]) >= 1
        assert full.json()["error"]["type"] == "rate_limit_error"
        with server.client() as client, pytest.raises(openai.RateLimitError):
            client.completions.create(model=NAME, prompt="a", n=2)
        for stream in streams:
            stream.close()
        assert server.idle()


@pytest.mark.usefixtures("slow_steps")
def test_more_requests_at_once_than_allowed_are_refused(serve: Serve) -> None:
    with serve(limits=Limits(max_concurrent_requests=1)) as server, server.http() as http:
        stream = open_stream(server, {"prompt": "The", "max_tokens": 480, "ignore_eos": True, "stream": True})
        assert wait_until(lambda: server.service.metrics.in_progress == 1)
        answer = http.post("/v1/completions", json={"prompt": "a"})
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "too_many_requests"
        stream.close()
        assert server.idle()
        assert http.post("/v1/completions", json={"prompt": "a"}).status_code == 200


def open_stream(server: Running, body: dict[str, Any]) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall(request("/v1/completions", json.dumps(body).encode(), JSON))
    return connection
