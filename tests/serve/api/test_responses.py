"""OpenAI's own client, unchanged, against /v1/responses."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pydantic
import pytest

from fathom.serve.api.responses_translation import ResponsesTranslation
from fathom.serve.errors import ApiError
from fathom.serve.response.opaque import carry
from fathom.serve.schemas.responses import Item, ResponsesRequest
from fathom.serve.settings import Limits
from tests.serve.serving import CONTEXT, NAME, Running, Serve

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Tell the weather.",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]},
    "strict": False,
}
CLOCK: Any = {"type": "function", "name": "get_time", "parameters": {"type": "object", "properties": {}}}


class City(pydantic.BaseModel):
    name: Literal["Oslo", "Rome"]
    big: bool


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": NAME, "input": "The river", "max_output_tokens": 12, "temperature": 0} | fields


def messages(items: list[Any], **fields: Any) -> list[dict[str, Any]]:
    """Return the chat request's messages for input items."""
    body = ResponsesRequest.model_validate({"input": items} | fields)
    given = [Item.model_validate(item) for item in items]
    return ResponsesTranslation(body, [], given).chat.model_dump(exclude_none=True)["messages"]  # type: ignore[no-any-return]


def test_a_response_is_created_with_its_usage(client: openai.OpenAI) -> None:
    response = client.responses.create(**asked(metadata={"k": "v"}, instructions="Be terse.", user="me"))
    counted = client.responses.input_tokens.count(model=NAME, input="The river", instructions="Be terse.")
    assert response.id.startswith("resp_")
    assert (response.object, response.model, response.status) == ("response", NAME, "incomplete")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output_text
    assert (response.metadata, response.instructions, response.user) == ({"k": "v"}, "Be terse.", "me")
    assert response.usage is not None
    assert response.usage.input_tokens == counted.input_tokens
    assert response.usage.output_tokens == 12


def test_the_stream_helper_gives_the_created_response(client: openai.OpenAI) -> None:
    whole = client.responses.create(**asked())
    with client.responses.stream(**asked()) as stream:
        events = list(stream)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == whole.output_text
    assert last.response.usage == whole.usage


def test_output_is_parsed_as_a_pydantic_type(client: openai.OpenAI) -> None:
    fields = asked(max_output_tokens=200, text_format=City)
    parsed = client.responses.parse(**fields)
    assert isinstance(parsed.output_parsed, City)
    with client.responses.stream(**fields) as stream:
        assert stream.get_final_response().output_parsed == parsed.output_parsed
    loose = client.responses.create(
        **asked(max_output_tokens=300, text={"format": {"type": "json_object"}}, extra_body={"seed": 3})
    )
    assert loose.status == "incomplete" or isinstance(json.loads(loose.output_text), dict)


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"get_weather", "get_time"}),
        ({"type": "function", "name": "get_weather"}, {"get_weather"}),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_time"}]},
            {"get_time"},
        ),
    ],
)
def test_a_tool_is_called_and_its_output_sent_back(client: openai.OpenAI, choice: Any, names: set[str]) -> None:
    tools = [WEATHER, CLOCK]
    fields = asked(tools=tools, tool_choice=choice, max_output_tokens=100)
    first = client.responses.create(**fields)
    (call,) = first.output
    assert call.type == "function_call"
    assert call.name in names
    json.loads(call.arguments)
    with client.responses.stream(**fields) as stream:
        (streamed,) = stream.get_final_response().output
    assert streamed.type == "function_call"
    assert (streamed.name, streamed.arguments) == (call.name, call.arguments)
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    whole = [{"role": "user", "content": "The river"}, call.to_dict(), result]
    stateless = client.responses.create(**asked(input=whole, tools=tools))
    kept = client.responses.create(**asked(input=[result], tools=tools, previous_response_id=first.id))
    assert kept.usage is not None
    assert stateless.usage is not None
    assert kept.usage.input_tokens == stateless.usage.input_tokens
    assert kept.output_text == stateless.output_text


def test_reasoning_is_an_item_of_its_own(client: openai.OpenAI) -> None:
    extra = {"chat_template_kwargs": {"thinking": True, "enable_thinking": True}}
    turns: list[Any] = [
        {"role": "user", "content": "a"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": carry("why")},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        {"role": "user", "content": "c"},
    ]
    response = client.responses.create(**asked(input=turns, reasoning={"effort": "high"}, extra_body=extra))
    assert response.reasoning is not None
    assert response.reasoning.effort == "high"
    assert messages(turns)[1]["reasoning_content"] == "why"


def test_log_probabilities_come_where_they_are_asked_for(client: openai.OpenAI) -> None:
    response = client.responses.create(**asked(top_logprobs=2, include=["message.output_text.logprobs"]))
    message = response.output[0]
    assert message.type == "message"
    text = message.content[0]
    assert text.type == "output_text"
    assert text.logprobs
    assert all(len(entry.top_logprobs) == 2 for entry in text.logprobs)


def test_a_conversation_goes_on_from_the_response_before(client: openai.OpenAI) -> None:
    first = client.responses.create(**asked())
    second = client.responses.create(**asked(input="And?", previous_response_id=first.id))
    third = client.responses.create(**asked(input="So?", previous_response_id=second.id))
    turns: list[Any] = [
        {"role": "user", "content": "The river"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And?"},
        *[item.to_dict() for item in second.output],
        {"role": "user", "content": "So?"},
    ]
    whole = client.responses.create(**asked(input=turns))
    assert third.output_text == whole.output_text
    assert third.usage is not None
    assert whole.usage is not None
    assert third.usage.input_tokens == whole.usage.input_tokens
    referred = [{"type": "item_reference", "id": first.output[0].id}, {"role": "user", "content": "And?"}]
    again = client.responses.create(**asked(input=[{"role": "user", "content": "The river"}, *referred]))
    assert again.output_text == second.output_text


def test_a_kept_response_is_retrieved_listed_and_deleted(client: openai.OpenAI) -> None:
    first = client.responses.create(**asked(input=[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]))
    assert client.responses.retrieve(first.id) == first
    listed = client.responses.input_items.list(first.id, order="asc", limit=1)
    assert listed.data[0].to_dict()["content"] == [{"type": "input_text", "text": "a"}]
    assert listed.has_more
    everything = [item.to_dict()["content"] for item in client.responses.input_items.list(first.id, limit=1)]
    assert [content[0]["text"] for content in everything] == ["b", "a"]  # type: ignore[index]
    with pytest.raises(openai.BadRequestError, match="only background responses can be cancelled"):
        client.responses.cancel(first.id)
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="is not kept here"):
        client.responses.retrieve(first.id)


def test_what_is_not_stored_or_streamed_to_its_end_is_not_found(client: openai.OpenAI) -> None:
    unkept = client.responses.create(**asked(store=False))
    with client.responses.stream(**asked()) as stream:
        kept = next(event.response.id for event in stream if event.type == "response.incomplete")
    client.responses.retrieve(kept)
    for name in (unkept.id, "resp_of_another_server"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.responses.create(**asked(previous_response_id=name))
        assert name in caught.value.message
        assert caught.value.param == "previous_response_id"
        assert "send the whole conversation as input" in caught.value.message
    client.responses.create(**asked(input=[{"role": "user", "content": "The river"}]))  # the remedy


def test_security_a_key_reads_and_pushes_out_its_own_responses_only(serve: Serve) -> None:
    keys = ("first-key-1", "second-key-2")
    with (
        serve(api_keys=keys, limits=Limits(stored_responses=2)) as running,
        running.client(keys[0]) as one,
        running.client(keys[1]) as two,
    ):
        made = one.responses.create(**asked())
        assert one.responses.retrieve(made.id).id == made.id
        with pytest.raises(openai.NotFoundError):
            two.responses.retrieve(made.id)
        for _ in range(3):
            two.responses.create(**asked())  # which pushes out its own
        one.responses.create(**asked(previous_response_id=made.id))
        with pytest.raises(openai.NotFoundError):
            one.responses.retrieve(made.id)


def test_responses_belong_to_the_valid_key_of_a_request(serve: Serve) -> None:
    keys = ("first-key-1", "second-key-2")
    one, two = ({"authorization": "Bearer none", "x-api-key": key} for key in keys)
    with serve(api_keys=keys) as running, running.http() as http:
        made = http.post("/v1/responses", json=asked(), headers=one).json()["id"]
        assert http.get(f"/v1/responses/{made}", headers={"api-key": keys[0]}).status_code == 200
        assert http.get(f"/v1/responses/{made}", headers=two).status_code == 404


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "function_call_output", "output": "a"}]}, "input[0].call_id"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": "word " * 4000}, "input"),
        ({"input": "word " * 4000, "truncation": "auto"}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"top_logprobs": 999}, "top_logprobs"),
    ],
)
def test_refusals_name_the_clients_field(client: openai.OpenAI, fields: dict[str, Any], where: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**asked(**fields))
    assert caught.value.message.split(" - ", 1)[1].startswith(f"{where}: ")


def test_images_are_refused_where_the_model_sees_none(client: openai.OpenAI) -> None:
    image = {"type": "input_image", "image_url": "https://example.org/a.png", "detail": "auto"}
    content = [{"type": "input_text", "text": "a"}, image]
    with pytest.raises(openai.BadRequestError, match=r"input\[0\].content\[1\].image_url: 'https"):
        client.responses.create(**asked(input=[{"role": "user", "content": content}]))


def test_more_tokens_than_fit_are_clamped_by_the_clients_name(server: Running) -> None:
    with server.http() as http:
        answer = http.post("/v1/responses", json={"input": "word " * 90, "max_output_tokens": 9999})
    assert answer.status_code == 200
    fitting = CONTEXT - answer.json()["usage"]["input_tokens"]
    assert answer.headers["x-fathom-clamped"] == f"max_output_tokens={fitting}"


def test_the_first_turns_are_left_out_where_truncation_is_auto(client: openai.OpenAI) -> None:
    long: list[Any] = [{"role": "user", "content": f"{number} " + "word " * 40} for number in range(3)]
    turns = [turn for each in long for turn in (each, {"role": "assistant", "content": "yes"})]
    fields = asked(input=[*turns, {"role": "user", "content": "So?"}], instructions="Be terse.", max_output_tokens=3)
    with pytest.raises(openai.BadRequestError, match="prompt is too long"):
        client.responses.create(**fields)
    cut = client.responses.create(**fields, truncation="auto")
    kept = client.responses.create(**fields | {"input": fields["input"][2:]})
    shorter = client.responses.create(**fields | {"input": fields["input"][4:]})
    assert cut.truncation == "auto"
    assert cut.usage is not None
    assert cut.usage.input_tokens in (kept.usage.input_tokens, shorter.usage.input_tokens)  # type: ignore[union-attr]


def test_requests_of_codex_and_the_agents_sdk_are_answered(server: Running) -> None:
    codex = {
        "model": NAME,
        "instructions": "You are a coding agent.",
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions>"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "<environment_context>"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "list files"}]},
            {"type": "reasoning", "summary": [], "content": None, "encrypted_content": carry("I look")},
            {"type": "function_call", "name": "shell", "arguments": '{"command":["ls"]}', "call_id": "call_1"},
            {"type": "function_call_output", "call_id": "call_1", "output": "a.py"},
        ],
        "tools": [
            {"type": "function", "name": "shell", "strict": False, "parameters": {"type": "object"}},
            {"type": "local_shell"},
            {"type": "web_search", "external_web_access": False},
            {
                "type": "custom",
                "name": "apply_patch",
                "format": {"type": "grammar", "syntax": "lark", "definition": ""},
            },
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "019a",
        "text": {"verbosity": "low"},
        "client_metadata": {"a": "b"},
    }
    agents = {
        "model": NAME,
        "input": [{"role": "user", "content": "hi"}],
        "include": [],
        "tools": [WEATHER],
        "tool_choice": "auto",
        "text": {"format": {"type": "text"}},
        "truncation": None,
        "max_output_tokens": 5,
        "temperature": 0,
        "metadata": None,
        "parallel_tool_calls": None,
        "reasoning": None,
        "store": None,
        "prompt_cache_retention": None,
    }
    with server.http() as http:
        streamed = http.post("/v1/responses", json=codex | {"max_output_tokens": 5, "temperature": 0})
        answer = http.post("/v1/responses", json=agents)
    assert streamed.status_code == answer.status_code == 200
    assert streamed.text.startswith("event: response.created\n")
    ignored = streamed.headers["x-fathom-ignored-fields"]
    assert all(kind in ignored for kind in ("local_shell", "web_search", "custom", "client_metadata"))
    assert answer.json()["status"] == "incomplete"


def test_items_become_messages() -> None:
    made = messages(
        [
            {"type": "message", "role": "developer", "content": "second"},
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"type": "web_search_call", "id": "ws_1", "status": "completed"},
            {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "why"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "2", "name": "f", "arguments": '{"x": 1}'},
            {"type": "function_call_output", "call_id": "1", "output": "one"},
            {
                "type": "function_call_output",
                "call_id": "2",
                "output": [{"type": "input_image", "image_url": "data:image/png;base64,QQ=="}],
            },
            {"role": "user", "content": "c"},
            {"role": "system", "content": "later"},
        ],
        instructions="first",
    )
    assert made == [
        {"role": "system", "content": "first\n\nsecond"},
        {"role": "user", "content": "a\n\nb"},
        {
            "role": "assistant",
            "content": "no",
            "reasoning_content": "why",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "2", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
            ],
        },
        {"role": "tool", "content": "one", "tool_call_id": "1"},
        {"role": "tool", "content": "", "tool_call_id": "2"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,QQ=="}},
                {"type": "text", "text": "c"},
            ],
        },
        {"role": "system", "content": "later"},
    ]


def test_an_item_of_no_message_is_refused() -> None:
    with pytest.raises(ApiError, match=r"^input: holds nothing that can be read"):
        messages([{"type": "web_search_call"}])
