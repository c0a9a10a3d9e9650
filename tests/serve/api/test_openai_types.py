"""Every field of the official client's request types, null and in every form its types allow.

Each is honoured, ignored by name, or refused by a message that begins with its name.
"""

from __future__ import annotations

import collections.abc
import json
import typing
from typing import Any

import httpx2
import openai
import pytest
import typing_extensions
from openai.types import completion_create_params as text_params
from openai.types.chat import ChatCompletionMessageParam
from openai.types.chat import completion_create_params as chat_params
from pydantic import BaseModel

from tests.serve.serving import NAME, Running

HELLO: dict[str, Any] = {"role": "user", "content": "The river"}
TOOL = {"type": "function", "function": {"name": "name", "parameters": {"type": "object", "properties": {}}}}
TOOLS: dict[str, Any] = {"tools": [TOOL]}
CHAT_HONOURED = {
    "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens",
    "messages", "modalities", "n", "parallel_tool_calls", "presence_penalty", "reasoning_effort", "response_format",
    "seed", "stop", "stream_options", "temperature", "tool_choice", "tools", "top_logprobs", "top_p",
}  # fmt: skip
TEXT_HONOURED = {
    "best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n", "presence_penalty", "prompt",
    "seed", "stop", "stream_options", "suffix", "temperature", "top_p",
}  # fmt: skip
NEEDS: dict[str, dict[str, Any]] = {
    "top_logprobs": {"logprobs": True},
    "stream_options": {"stream": True},
    "tool_choice": TOOLS,
    "function_call": {"functions": [TOOL["function"]]},
}


def samples(kind: Any, depth: int = 0) -> list[Any]:
    """Return a value for every form of a type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Required, typing.NotRequired):
        return samples(arguments[0], depth)
    if origin is typing.Union:
        return [value for each in arguments for value in samples(each, depth)]
    if origin is typing.Literal:
        return list(arguments)
    if kind is type(None):
        return [None]
    if typing_extensions.is_typeddict(kind):
        return objects(kind, depth)
    if origin in (list, collections.abc.Iterable, collections.abc.Sequence):
        return [[value] for value in samples(arguments[0], depth + 1)]
    if origin is dict or kind is dict:
        return [{"1": 1}] if arguments and arguments[1] is int else [{"type": "object"}]
    return [{bool: True, int: 1, float: 0.5, str: "name", object: {}}[kind]]


def objects(kind: Any, depth: int) -> list[dict[str, Any]]:
    """Return an object with all its fields in their first form, and one for each further form of a field."""
    forms = {name: samples(field, depth + 1) for name, field in typing.get_type_hints(kind).items()}
    whole = {name: values[0] for name, values in forms.items()}
    if depth > 3:
        return [whole]
    needed = {name: whole[name] for name in kind.__required_keys__}
    return [whole, *(needed | {name: value} for name, values in forms.items() for value in values[1:])]


def outcome(http: httpx2.Client, path: str, body: dict[str, Any], field: str) -> str:
    answer = http.post(path, json=body)
    if answer.status_code == 400:
        message = answer.json()["error"]["message"]
        assert message.startswith(field), (body, message)
        assert ";" in message
        return "refused"
    assert answer.status_code == 200, (body, answer.text)
    named = answer.headers.get("x-fathom-ignored-fields", "").split(", ")
    return "ignored" if field in named else "honoured"


def outcomes(server: Running, path: str, params: Any, base: dict[str, Any]) -> dict[str, set[str]]:
    """Ask for every form of every field; return what happened to each field that is not null."""
    found: dict[str, set[str]] = {}
    with server.http() as http:
        for field, kind in typing.get_type_hints(params).items():
            if field == "model":
                continue
            for value in samples(kind):
                body = base | NEEDS.get(field, {}) | {"model": NAME, field: value}
                happened = outcome(http, path, body, field)
                if value is None:
                    assert happened == "honoured", field
                else:
                    found.setdefault(field, set()).add(happened)
    return found


@pytest.mark.parametrize(
    ("path", "params", "base", "honoured"),
    [
        ("/v1/chat/completions", chat_params.CompletionCreateParamsBase, {"messages": [HELLO]}, CHAT_HONOURED),
        ("/v1/completions", text_params.CompletionCreateParamsBase, {"prompt": "a"}, TEXT_HONOURED),
    ],
)
def test_every_official_field_is_honoured_ignored_by_name_or_refused_with_the_reason(
    server: Running, path: str, params: Any, base: dict[str, Any], honoured: set[str]
) -> None:
    found = outcomes(server, path, params, base | {"max_tokens": 1})
    assert {field for field, happened in found.items() if "honoured" in happened} == honoured
    assert {field for field, happened in found.items() if happened == {"ignored"}} == found.keys() - honoured
    assert {field for field, happened in found.items() if "refused" in happened} <= {
        "messages",  # audio and files
        "modalities",  # audio
        "response_format",  # a name of no schema
        "tool_choice",  # custom tools
        "logit_bias",
        "tools",
    }


@pytest.mark.parametrize("field", sorted(typing.get_type_hints(chat_params.CompletionCreateParamsBase)))
def test_every_official_field_may_be_null(server: Running, field: str) -> None:
    with server.http() as http:
        body = {"messages": [HELLO], "max_tokens": 1} | ({} if field == "messages" else {field: None})
        answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert "x-fathom-ignored-fields" not in answer.headers


def test_every_message_of_the_official_types_is_read_or_refused_by_its_place(server: Running) -> None:
    read = set()
    with server.http() as http:
        for message in samples(ChatCompletionMessageParam):
            body = {"messages": [HELLO, message], "max_tokens": 1}
            answer = http.post("/v1/chat/completions", json=body)
            if answer.status_code == 200:
                read.add(message["role"])
                continue
            assert answer.status_code == 400, (message, answer.text)
            error = answer.json()["error"]["message"]
            assert error.startswith("messages[1]."), (message, error)
            assert "; " in error
    assert read == {"developer", "system", "user", "assistant", "tool", "function"}


def test_raw_responses_name_ignored_and_clamped_fields(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=NAME,
        messages=[HELLO],
        max_tokens=10**7,
        user="u",
        stop=["e"],
        extra_body={"num_ctx": 4096},  # type: ignore[list-item]
    )
    assert raw.headers["x-fathom-ignored-fields"] == "user, num_ctx"
    assert raw.headers["x-fathom-clamped"].startswith("max_tokens=")
    assert raw.parse().choices[0].finish_reason in ("stop", "length")


class City(BaseModel):
    name: typing.Literal["Oslo", "Rome"]
    large: bool


def test_the_clients_own_parse_gives_its_pydantic_model(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=NAME,
        messages=[HELLO],
        response_format=City,
        max_tokens=200,
        seed=1,
        temperature=0.5,  # type: ignore[list-item]
    )
    assert isinstance(answer.choices[0].message.parsed, City)


def test_the_clients_own_stream_helper_builds_the_message(client: openai.OpenAI) -> None:
    tools: Any = [TOOL]
    with client.chat.completions.stream(
        model=NAME,
        messages=[HELLO],
        tools=tools,
        tool_choice="required",
        max_tokens=120,
        seed=2,  # type: ignore[list-item]
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion().choices[0]
    assert "chunk" in kinds
    assert final.finish_reason == "tool_calls"
    assert final.message.tool_calls is not None
    call = final.message.tool_calls[0]
    assert json.loads(call.function.arguments) == {}
