"""Requests as clients and frameworks send them, written out in client_requests.json; each is answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.serve.serving import Running

REQUESTS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("client_requests.json").read_text("utf-8"))
SHORT = 6
"""Tokens of an answer at most, so that the tests take little; the fields are as they were sent."""


@pytest.mark.parametrize("name", REQUESTS)
def test_the_requests_of_clients_are_answered(server: Running, name: str) -> None:
    path, body = REQUESTS[name]["path"], REQUESTS[name]["body"]
    limits = [field for field in ("max_tokens", "max_completion_tokens", "max_new_tokens") if field in body]
    forced = any(isinstance(body.get(field), dict) for field in ("tool_choice", "response_format"))
    sent = body | ({} if forced else dict.fromkeys(limits or ["max_tokens"], SHORT))
    with server.http() as http:
        answer = http.post(path, json=sent)
    assert answer.status_code == 200, answer.text
    if not body.get("stream"):
        assert answer.json()["choices"]
        return
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert not any("error" in chunk for chunk in chunks)
    assert any(choice["finish_reason"] for chunk in chunks for choice in chunk["choices"])


def test_what_had_no_effect_is_named(server: Running) -> None:
    with server.http() as http:
        answer = http.post("/v1/chat/completions", json=REQUESTS["open webui"]["body"] | {"max_tokens": SHORT})
    named = answer.headers["x-fathom-ignored-fields"].split(", ")
    assert {"num_ctx", "keep_alive", "mirostat"} & set(named)
    assert not {"repeat_penalty", "top_k", "temperature", "stream", "model", "messages"} & set(named)
    assert len(answer.headers["x-fathom-ignored-fields"]) < 2048
