"""What parsing a body may take: every schema is bounded, errors stop early, and all bodies share a budget."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from fathom.serve.app import BODIES
from fathom.serve.errors import ApiError
from fathom.serve.executor import SMALL_BODY_BYTES, BodyMemory
from fathom.serve.http.json_cost import parse_cost
from fathom.serve.http.request_body import parse_body
from fathom.serve.schemas.chat import ChatCompletionRequest
from fathom.serve.schemas.embeddings import EmbeddingRequest
from fathom.serve.schemas.ignored import IgnoredValue
from fathom.serve.settings import Limits
from tests.serve.serving import Serve

HELLO = b'{"role":"user","content":"a"}'


def unbounded(schema: dict[str, Any], where: str) -> Iterator[str]:
    """Yield the places of a JSON Schema that take a text, list or free object of any size."""
    kind = schema.get("type")
    if kind == "string" and not {"maxLength", "enum", "const"} & schema.keys():
        yield f"{where}: a text"
    if kind == "array" and "maxItems" not in schema:
        yield f"{where}: a list"
    if kind == "object" and "properties" not in schema and "maxProperties" not in schema:
        yield f"{where}: an object"
    for key in ("properties", "$defs"):
        for name, inner in schema.get(key, {}).items():
            yield from unbounded(inner, f"{where}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from unbounded(schema[key], f"{where}[]")
    for key in ("anyOf", "oneOf", "allOf"):
        for inner in schema.get(key, ()):
            yield from unbounded(inner, where)


@pytest.mark.parametrize("route", BODIES)
def test_every_text_list_and_object_of_a_schema_is_bounded(route: str) -> None:
    """Values within a free object are bounded by ``json_cost`` alone."""
    assert not list(unbounded(BODIES[route].model_json_schema(), route))


@pytest.mark.parametrize("route", BODIES)
def test_what_has_no_type_is_not_read(route: str) -> None:
    seen: set[type[BaseModel]] = set()
    pending: list[Any] = [BODIES[route]]
    while pending:
        given = pending.pop()
        pending += getattr(given, "__args__", ())
        if isinstance(given, type) and issubclass(given, BaseModel) and given not in seen:
            seen.add(given)
            assert all(field.annotation is not Any for field in given.model_fields.values()), given
            pending += [field.annotation for field in given.model_fields.values()]
    assert seen


def test_the_walk_finds_what_is_unbounded() -> None:
    class Open(BaseModel):
        text: str | None
        items: list[int]
        table: dict[str, Any]
        ignored: IgnoredValue | None

    assert len(list(unbounded(Open.model_json_schema(), ""))) == 3


@pytest.mark.parametrize(
    ("route", "body", "words"),
    [
        ("/v1/chat/completions", b'{"messages":[' + b"0," * 150_000 + b"0]}", r"messages\[0\]: .*got 0"),
        ("/v1/messages", b'{"messages":[' + b"0," * 150_000 + b"0]}", "messages"),
        ("/tokenize", b'{"messages":[' + b"0," * 150_000 + b"0]}", r"messages\[0\]: .*got 0"),
        ("/v1/completions", b'{"prompt":[' + b'"a",' * 150_000 + b'"a"]}', "prompt"),
        ("/v1/completions", b'{"prompt":[' + b"[1]," * 50_000 + b"[1]]}", "prompt"),
        ("/v1/embeddings", b'{"input":[' + b"[1]," * 50_000 + b"[1]]}", "input"),
        (
            "/v1/completions",
            b'{"prompt":"a","logit_bias":{' + b",".join(b'"%d":"a"' % index for index in range(60_000)) + b"}}",
            "logit_bias: object should have at most",
        ),
        ("/v1/chat/completions", b'{"messages":"' + b"a" * (16 << 20) + b'"}', 'messages: .* got "aaaa'),
    ],
)
def test_a_fault_is_named_without_reading_the_others(route: str, body: bytes, words: str) -> None:
    tracemalloc.start()
    with pytest.raises(ApiError, match=words) as caught:
        parse_body(body, BODIES[route])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.status == 400
    assert len(caught.value.message) < 400
    assert peak < 20 * len(body) + (16 << 20)


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[' + b"0," * (1 << 20) + b"0]}",
        b'{"messages":[{"role":"user","content":[' + b'{"type":"text","text":"a"},' * 400_000 + b"0]}]}",
        b'{"messages":[' + HELLO + b'],"chat_template_kwargs":{"a":[' + b"{}," * (1 << 20) + b"0]}}",
        b'{"messages":[{"role":"user","content":"' + b"\\n" * (4 << 20) + b'"}]}',
        b"[" * (1 << 20),
    ],
)
def test_a_body_that_would_hold_the_interpreter_is_refused_before_it_is_parsed(body: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(ApiError, match="more JSON values than may be read") as caught:
        parse_body(body, ChatCompletionRequest)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.status == 413
    assert peak < 2 * len(body) + (32 << 20)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/chat/completions", b'{"messages":[' + b",".join([HELLO] * 2048) + b"]}"),
        ("/v1/chat/completions", b'{"messages":[{"role":"user","content":"' + b"a" * 1_500_000 + b'"}]}'),
        (
            "/v1/chat/completions",
            b'{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,'
            + b"a" * (22 << 20)
            + b'"}}]}]}',
        ),
        ("/v1/completions", b'{"prompt":[' + b",".join([b"100000"] * 300_000) + b"]}"),
        ("/v1/embeddings", b'{"input":[' + b",".join([b'"' + b"a text " * 40 + b'"'] * 2048) + b"]}"),
        (
            "/v1/messages",
            b'{"model":"a","max_tokens":3,"messages":['
            + HELLO
            + b'],"tools":['
            + b",".join(
                b'{"name":"f%d","description":"%b","input_schema":{"type":"object","properties":{%b}}}'
                % (
                    number,
                    b"what it does " * 150,
                    b",".join(
                        b'"p%d":{"type":"string","description":"a parameter"}' % parameter for parameter in range(20)
                    ),
                )
                for number in range(200)
            )
            + b"]}",
        ),
    ],
)
def test_what_agents_send_is_read(route: str, body: bytes) -> None:
    parse_body(body, BODIES[route])


def test_backslashes_are_paired_across_the_pieces_of_a_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b'{"a":"\\\\","b":"\\"[,","c":["\\\\\\"{",{}]}' * 7
    whole = parse_cost(text)
    for size in range(1, 40):
        monkeypatch.setattr("fathom.serve.http.json_cost._CHUNK", size)
        assert parse_cost(text) == whole


def test_bodies_share_a_budget_that_small_ones_always_fit() -> None:
    memory = BodyMemory(1 << 20)
    first, second, small = memory.hold(), memory.hold(), memory.hold()
    first.add(1 << 20)
    with pytest.raises(ApiError, match="try again in 1 s") as caught:
        second.add(SMALL_BODY_BYTES + 1)
    assert (caught.value.status, caught.value.retry_after) == (429, 1)
    small.add(SMALL_BODY_BYTES)
    first.release()
    first.add(1 << 20)  # a thread that goes on after its client was answered
    second.add(1 << 19)
    assert memory.nbytes == SMALL_BODY_BYTES + (1 << 19)
    second.add(-(1 << 18))
    for held in (second, small, second):
        held.release()
    assert memory.nbytes == 0


def test_a_server_refuses_bodies_beyond_its_budget_and_serves_them_later(serve: Serve) -> None:
    limits = Limits(body_bytes=1 << 20, body_memory_bytes=4 << 20)
    body = b'{"prompt":"a","max_tokens":1,"x":"' + b"a" * (1 << 19) + b'"}'
    headers = {"content-type": "application/json"}
    with serve(limits=limits) as server, server.http() as http:
        memory = server.models.executor.memory
        others = memory.hold()
        others.add(4 << 20)
        refused = http.post("/v1/completions", content=body, headers=headers)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200
        others.release()
        assert http.post("/v1/completions", content=body, headers=headers).status_code == 200
        assert memory.nbytes == 0


def test_embedding_input_may_be_all_of_its_forms() -> None:
    for text in (b'"a"', b'["a","b"]', b"[1,2]", b"[[1],[2]]"):
        parse_body(b'{"input":' + text + b',"user":{"a":1}}', EmbeddingRequest)
