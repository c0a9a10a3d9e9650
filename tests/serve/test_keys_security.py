"""What one key may learn of another, and what a client can write into logs and metrics."""

from __future__ import annotations

import json
import keyword
import logging
import string
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fathom.files import sha256
from fathom.inference.prompt import FeatureCache
from fathom.serve.settings import Limits
from tests.serve.serving import Running, Serve, raw

KEYS = ("first-key-of-all", "second-key-of-all")
TEXT = "A friend of the stone hears a song at the window, and the garden keeps the tower. " * 3
Ask = Callable[[httpx2.Client, dict[str, Any]], int]


def _completion(http: httpx2.Client, more: dict[str, Any]) -> int:
    usage = http.post("/v1/completions", json={"prompt": TEXT, "max_tokens": 1} | more).json()["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def _chat(http: httpx2.Client, more: dict[str, Any]) -> int:
    body = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 1} | more
    usage = http.post("/v1/chat/completions", json=body).json()["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def _response(http: httpx2.Client, more: dict[str, Any]) -> int:
    usage = http.post("/v1/responses", json={"input": TEXT, "max_output_tokens": 1} | more).json()["usage"]
    return int(usage["input_tokens_details"]["cached_tokens"])


def _message(http: httpx2.Client, more: dict[str, Any]) -> int:
    body = {"model": "tiny", "messages": [{"role": "user", "content": TEXT}], "max_tokens": 1} | more
    return int(http.post("/v1/messages", json=body).json()["usage"]["cache_read_input_tokens"])


ROUTES = [_completion, _chat, _response, _message]


@pytest.mark.parametrize("ask", ROUTES)
@pytest.mark.parametrize("share", [False, True])
def test_security_a_key_is_served_from_its_own_cached_prefixes_only(serve: Serve, ask: Ask, share: bool) -> None:
    with (
        serve(api_keys=KEYS, share_prefix_cache=share) as server,
        server.http(authorization=f"Bearer {KEYS[0]}") as first,
        server.http(authorization=f"Bearer {KEYS[1]}") as second,
    ):
        assert ask(first, {}) == 0
        assert ask(first, {}) > 0
        assert (ask(second, {}) > 0) == share
        assert ask(second, {}) > 0


def test_security_no_salt_opens_another_keys_prefixes(serve: Serve) -> None:
    digest = sha256(KEYS[0])
    with (
        serve(api_keys=KEYS) as server,
        server.http(authorization=f"Bearer {KEYS[0]}") as first,
        server.http(authorization=f"Bearer {KEYS[1]}") as second,
    ):
        for salt in ("", "mine"):
            _completion(first, {"cache_salt": salt})
        for salt in ("", "mine", digest, f"{digest}:", f"{digest}:mine", f":{digest}:mine"):
            assert _completion(second, {"cache_salt": salt}) == 0


def test_security_features_of_images_are_cached_for_one_salt() -> None:
    computed: list[int] = []

    def compute(image: Image.Image) -> torch.Tensor:
        computed.append(image.width)
        return torch.zeros(1, 1)

    kept = FeatureCache()
    for salt in ("a:", "b:", "a:", "b:"):
        kept.features(Image.new("RGB", (3, 3)), compute, salt)
    assert computed == [3, 3]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_security_a_key_puts_its_requests_before_anothers_only_where_that_is_allowed(serve: Serve, path: str) -> None:
    body = {"prompt": "a", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "priority": 1000}
    for keys, share, obeyed in ((KEYS, False, False), (KEYS, True, True), (KEYS[:1], False, True), ((), False, True)):
        seen: list[int] = []
        with (
            serve(api_keys=keys, share_priority=share) as server,
            server.http(authorization=f"Bearer {KEYS[0]}") as http,
        ):
            submit = server.service.worker.submit_all

            def watched(requests: Any, listener: Any, submit: Any = submit, seen: list[int] = seen) -> Any:
                seen.extend(request.priority for request in requests)
                return submit(requests, listener)

            server.service.worker.submit_all = watched  # type: ignore[method-assign]
            ignored = http.post(path, json=body).headers.get("x-fathom-ignored-fields", "")
        assert seen == [1000 if obeyed else 0]
        assert ("priority (several keys share the engine)" in ignored) != obeyed


def test_security_log_probabilities_of_prompts_are_bounded_together(serve: Serve) -> None:
    body = {"prompt": [[5] * 100] * 16, "max_tokens": 0, "echo": True, "logprobs": 4}
    with serve(limits=Limits(prompt_logprobs=8000)) as server, server.http() as http:
        assert http.post("/v1/completions", json=body).status_code == 200
        for more in ({"logprobs": 5}, {"prompt": [[5] * 101] * 16}, {"n": 2}):
            answer = http.post("/v1/completions", json=body | more)
            assert answer.status_code == 400
            assert "log-probabilities" in answer.text
        assert http.post("/v1/completions", json=body | {"echo": False, "max_tokens": 1, "n": 2}).status_code == 200


NAMES = [
    *("self", "args", "kwargs", "tokenizer", "messages", "template", "variables", "cache_salt", "tools", "documents"),
    *("bos_token", "eos_token", "image_token", "image_token_id", "max_chars", "tokens_per_image", "loop", "caller"),
    *("raise_exception", "strftime_now", "namespace", "range", "dict", "context", "environment", "varargs", "cls"),
    *(
        "add_generation_prompt",
        "continue_final_message",
        "thinking",
        "enable_thinking",
        "reasoning_effort",
        "__class__",
    ),
    *keyword.kwlist,
]
plain = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
values = plain | st.lists(plain, max_size=3) | st.dictionaries(st.text(max_size=8), plain, max_size=3)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(variables=st.dictionaries(st.sampled_from(NAMES) | st.text(string.printable, max_size=8), values, max_size=4))
def test_security_no_variable_of_a_template_is_taken_for_an_argument(
    server: Running, variables: dict[str, Any]
) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": variables}
    with server.http() as http:
        for path, more in (("/tokenize", {}), ("/v1/chat/completions", {"max_tokens": 1})):
            answer = http.post(path, json=body | more)
            assert answer.status_code in (200, 400), (variables, answer.text)


@pytest.mark.parametrize("name", NAMES)
def test_security_every_name_of_the_code_is_only_a_variable(server: Running, name: str) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {name: True}}
    with server.http() as http:
        answer = http.post("/tokenize", json=body)
    assert answer.status_code == 200 or "is not the caller's to set" in answer.text, answer.text


def test_each_request_has_an_id_of_its_own_beside_the_clients(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    given = [{"x-request-id": "abc-1"}, {"x-request-id": "abc-1"}, {"x-client-request-id": "def"}]
    given += [{"x-request-id": "a b"}, {"x-request-id": "a" * 129}, {}]
    with caplog.at_level(logging.INFO, logger="fathom.serve"), serve() as server, server.http() as http:
        made = [http.get("/health", headers=headers).headers["x-request-id"] for headers in given]
    facts = [json.loads(record.getMessage()) for record in caplog.records if record.name == "fathom.serve.access"]
    assert [line["id"] for line in facts] == made
    assert len(set(made)) == len(made)
    assert [line.get("client_request_id") for line in facts] == ["abc-1", "abc-1", "def", None, None, None]


def test_security_metrics_and_logs_do_not_grow_with_what_clients_invent(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Paths, methods, models, hosts and header values of a client become no label, and no second line of the log."""
    with caplog.at_level(logging.INFO, logger="fathom.serve"), serve() as server, server.http() as http:

        def invent(number: int) -> None:
            word = f"invented{number}"
            http.get(f"/{word}/{word}")
            http.request(f"X{word}".upper(), "/v1/models")
            http.get(f"/v1/models/{word}")
            http.get(f"/page/{word}")
            http.get(f"/v1/responses/{word}")
            http.post("/v1/completions", json={"model": word, "prompt": word, word: 1})
            http.post("/v1/completions", json={"prompt": word, "max_tokens": 1, "user": word, word: "\n" * 99})
            head = f"GET /%0a%0d{word} HTTP/1.1\r\nhost: a\r\nx-request-id: {word}\t;\r\n"
            raw(server.port, head.encode(), b"connection: close\r\n\r\n")

        def series() -> int:
            return sum(not line.startswith("#") for line in http.get("/metrics").text.splitlines())

        invent(0)
        few = [series(), series()][1]  # the first is counted itself
        for number in range(1, 12):
            invent(number)
        assert series() == few
        assert "invented" not in http.get("/metrics").text
    lines = [record.getMessage() for record in caplog.records if record.name == "fathom.serve.access"]
    assert len(lines) > 80
    for line in lines:
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < 4096
        assert json.loads(line)["route"] in {
            "none",
            "/v1/models",
            "/v1/completions",
            "/page/{name:path}",
            "/metrics",
        } | {
            "/v1/models/{name:path}",
            "/v1/responses/{response_id}",
        }
