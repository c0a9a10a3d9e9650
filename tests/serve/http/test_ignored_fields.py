"""Fields that the server does not know are ignored and named."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from fathom.serve.errors import ApiError
from fathom.serve.http.json_cost import parse_cost
from fathom.serve.http.request_body import parse_body
from fathom.serve.schemas.chat import ChatCompletionRequest
from fathom.serve.schemas.completions import CompletionRequest
from fathom.serve.schemas.ignored import MAX_NAMED
from tests.serve.serving import Running

HELLO = {"role": "user", "content": "a"}


def ignored(body: dict[str, Any]) -> str:
    _, fields = parse_body(json.dumps({"messages": [HELLO]} | body).encode(), ChatCompletionRequest)
    return fields.text


def test_unknown_fields_are_named_at_every_level() -> None:
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    tool = {"type": "function", "function": {"name": "f", "origin": 1}, "cache": True}
    body = {
        "messages": [HELLO | {"id": "m1"}, {"role": "user", "content": [part]}],
        "tools": [tool],
        "stream": True,
        "stream_options": {"chunk_size": 3},
        "made_up": [1, {"a": 2}],
    }
    named = "made_up, messages[0].id, messages[1].content[0].cache_control, tools[0].cache, tools[0].function.origin, "
    assert set(ignored(body).split(", ")) == set(f"{named}stream_options.chunk_size".split(", "))


def test_null_asks_for_nothing_and_is_not_named() -> None:
    assert ignored({"made_up": None, "messages": [HELLO | {"refusal": None, "audio": None}]}) == ""


def test_a_field_of_every_message_is_named_once() -> None:
    assert ignored({"messages": [HELLO | {"id": str(index)} for index in range(40)]}) == "messages[0].id (40 times)"


@pytest.mark.parametrize(
    ("name", "meant"), [("temprature", "temperature"), ("max_token", "max_tokens"), ("quite_other", None)]
)
def test_a_misspelt_field_is_hinted_at(name: str, meant: str | None) -> None:
    assert ignored({name: 1}) == (f"{name} (did you mean {meant}?)" if meant else name)


def test_names_are_few_short_and_safe_in_a_header() -> None:
    text = ignored({f"{index}\r\nx-evil: é, {'a' * 500}": 1 for index in range(1000)})
    assert text.endswith(f"and {1000 - MAX_NAMED} more")
    assert len(text) < 2048
    assert text.isascii()
    assert text.isprintable()
    assert ":" not in text
    assert ignored({"": 1}) == "(empty)"


def test_ignored_values_are_not_part_of_what_was_read() -> None:
    tool = {"type": "function", "function": {"name": "f", "x": 1}, "y": 2}
    body, _ = parse_body(json.dumps({"messages": [HELLO], "tools": [tool], "z": 3}).encode(), ChatCompletionRequest)
    dumped = body.model_dump(exclude_none=True)
    assert dumped == {"messages": [HELLO], "tools": [{"type": "function", "function": {"name": "f"}}]}


@pytest.mark.parametrize(
    "extra",
    [
        {"blob": "x" * 10_000_000},
        {f"field_{index:07d}": "x" * 80 for index in range(100_000)},
        {"nested": [{"field": index, "other": "a text" * 60} for index in range(25_000)]},
    ],
)
def test_ten_megabytes_of_unknown_fields_are_ignored(extra: dict[str, Any]) -> None:
    content = json.dumps({"prompt": "a"} | extra).encode()
    tracemalloc.start()
    body, fields = parse_body(content, CompletionRequest)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert body.prompt == "a"
    assert len(fields) == len(extra)
    assert peak < 20 * len(content)


@pytest.mark.parametrize("value", ["[],", "[0],", "{},", "0,"])
def test_a_body_whose_values_would_take_too_much_memory_is_refused_before_it_is_parsed(value: str) -> None:
    content = b'{"prompt": "a", "x": [' + value.encode() * (10_000_000 // len(value)) + b"0]}"
    tracemalloc.start()
    with pytest.raises(ApiError, match="leave out fields") as caught:
        parse_body(content, CompletionRequest)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.status == 413
    assert peak < 2 * len(content)


@pytest.mark.parametrize(
    ("text", "values", "containers", "keys"),
    [
        (b"[1,2,3]", 3, 1, 0),
        (b'{"a":[{}]}', 3, 3, 1),
        (b'["[,:{", "\\"[,", "\\\\", [1,2]]', 6, 2, 0),
        (b'["' + b"a\\\\" * 600_000 + b'",{"b":"' + b'\\"[' * 600_000 + b'"}]', 3, 2, 1),
    ],
)
def test_the_memory_of_values_is_counted_outside_strings(text: bytes, values: int, containers: int, keys: int) -> None:
    assert parse_cost(text).nbytes == 64 * values + 120 * containers + 140 * keys


def test_the_response_and_the_log_name_ignored_fields(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    asked = {"messages": [HELLO], "max_tokens": 2, "num_ctx": 8192, "temprature": 1}
    with server.http() as http, caplog.at_level("INFO", "fathom.serve.access"):
        for stream in (False, True):
            answer = http.post("/v1/chat/completions", json=asked | {"stream": stream})
            assert answer.status_code == 200
            named = answer.headers["x-fathom-ignored-fields"]
            assert named == "num_ctx, temprature (did you mean temperature?)"
        assert "x-fathom-ignored-fields" not in http.get("/health").headers
    lines = [json.loads(record.message) for record in caplog.records if "chat" in record.message]
    assert [line["ignored_fields"] for line in lines] == [named, named]


def test_max_tokens_beyond_the_context_are_clamped_and_said_so(server: Running) -> None:
    with server.http() as http:
        for path, prompt in (("chat/completions", {"messages": [HELLO]}), ("completions", {"prompt": "a"})):
            body = prompt | {"max_tokens": 10**6, "stop": ["e"]}
            answer = http.post(f"/v1/{path}", json=body)
            assert answer.status_code == 200, answer.text
            most = 512 - answer.json()["usage"]["prompt_tokens"]
            assert answer.headers["x-fathom-clamped"] == f"max_tokens={most}"
            assert "x-fathom-clamped" not in http.post(f"/v1/{path}", json=body | {"max_tokens": most}).headers


@pytest.mark.parametrize(
    "field", ["top_k", "n", "max_tokens", "min_tokens", "seed", "priority", "top_logprobs", "max_completion_tokens"]
)
def test_whole_floats_are_integers_and_nothing_else_is(field: str) -> None:
    def read(value: str) -> Any:
        body = f'{{"messages": [{{"role": "user", "content": "a"}}], "{field}": {value}}}'
        return getattr(parse_body(body.encode(), ChatCompletionRequest)[0], field)

    assert read("4.0") == 4
    assert type(read("4.0")) is int
    assert read("null") is None
    for wrong in ('"4"', "true", "4.5", "1e400", "[4]"):
        with pytest.raises(ApiError, match=f"{field}: .*integer.*; correct it"):
            read(wrong)


@pytest.mark.parametrize(("stop", "stops"), [(None, []), ([], []), ("", []), (["", "a"], ["a"]), ("b", ["b"])])
def test_empty_stop_strings_stop_nothing(stop: Any, stops: list[str]) -> None:
    assert parse_body(json.dumps({"prompt": "a", "stop": stop}).encode(), CompletionRequest)[0].stops == stops
