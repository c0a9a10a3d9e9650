"""What is counted and what is written down."""

from __future__ import annotations

import json
import logging
import time

import pytest

from fathom.serve.metrics import MAX_RETRY_SECONDS, Metrics
from tests.serve.serving import Running, Serve, wait_until


def test_counts_move_with_what_is_served(serve: Serve) -> None:
    with serve() as server, server.http() as http:
        body = {"prompt": "The river finds the road and the garden keeps the tower. " * 3, "max_tokens": 8, "seed": 1}
        body |= {"ignore_eos": True}
        for _ in range(2):
            assert http.post("/v1/completions", json=body).status_code == 200
        assert http.post("/v1/completions", json={}).status_code == 400
        assert http.get("/nowhere").status_code == 404
        usage = http.post("/v1/completions", json=body).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] > 0
        assert wait_until(lambda: server.metric("fathom_generated_tokens_total") == 24)
        assert server.metric("fathom_prompt_tokens_total") == 3 * usage["prompt_tokens"]
        assert server.metric("fathom_cached_tokens_total") == 2 * usage["prompt_tokens_details"]["cached_tokens"]
        assert server.metric("fathom_time_to_first_token_seconds_count") == 3
        assert 0 < server.metric("fathom_time_per_token_seconds_count") <= 21
        for route, status, count in (("/v1/completions", 200, 3), ("/v1/completions", 400, 1), ("none", 404, 1)):
            name = f'fathom_http_requests_total{{route="{route}",status="{status}"}}'
            assert server.metric(name) == count
        assert server.metric("fathom_pages_used") == 0
        assert server.metric("fathom_pages_cached") > 0
        assert server.metric("fathom_pages_total") == 512


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_salt_keeps_cached_prompts_apart(server: Running, path: str) -> None:
    text = f"{path} A friend of the stone hears a song. " * 4
    prompt = {"messages": [{"role": "user", "content": text}]} if "chat" in path else {"prompt": text}
    with server.http() as http:

        def cached(salt: str) -> int:
            answer = http.post(path, json=prompt | {"max_tokens": 1, "cache_salt": salt}).json()
            return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

        assert [cached("a") > 0, cached("a") > 0, cached("b") > 0] == [False, True, False]


def test_each_request_is_one_line_without_its_text_or_key(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    key = "a-very-secret-key"
    with (
        caplog.at_level(logging.INFO, logger="fathom.serve"),
        serve(api_keys=(key,)) as server,
        server.http(authorization=f"Bearer {key}") as http,
    ):
        answer = http.post("/v1/completions", json={"prompt": "unmistakable", "max_tokens": 3, "stream": True})
        http.post("/v1/completions?unmistakable=1", json={"prompt": 7, "user": "unmistakable"})
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("fathom.serve")]
    facts = [json.loads(line) for line in lines]
    assert [(line["route"], line["status"]) for line in facts] == [("/v1/completions", 200), ("/v1/completions", 400)]
    assert facts[0]["id"] == answer.headers["x-request-id"]
    assert facts[0]["completion_tokens"] <= 3
    assert not any(word in line for line in lines for word in (key, "unmistakable"))


def test_the_advice_when_to_come_again_follows_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    metrics = Metrics(dict)
    assert metrics.retry_after(50) == 1
    for _ in range(10):
        metrics.begin()
        metrics.end()
        now += 2.0
    assert metrics.retry_after(5) == 10
    assert metrics.retry_after(1000) == MAX_RETRY_SECONDS
