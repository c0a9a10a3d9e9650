"""Anthropic's own client, unchanged, against /v1/messages."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import pydantic
import pytest

from fathom.serve.api.messages_translation import MessagesTranslation
from fathom.serve.errors import ApiError
from fathom.serve.response.opaque import carry
from fathom.serve.schemas.messages import MessagesRequest
from fathom.serve.schemas.messages_models import AnthropicErrorResponse
from tests.serve.serving import NAME, Running, Serve

HELLO: list[Any] = [{"role": "user", "content": "The river"}]
GREEDY = {"temperature": 0}
WEATHER_INPUT: Any = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
WEATHER: Any = {"name": "get_weather", "description": "Tell the weather.", "input_schema": WEATHER_INPUT}
PIXEL = base64.b64encode(b"GIF89a").decode()


class City(pydantic.BaseModel):
    name: Literal["Oslo", "Rome"]
    big: bool


@pytest.fixture(scope="module")
def claude(server: Running) -> Iterator[anthropic.Anthropic]:
    with server.anthropic() as client:
        yield client


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": NAME, "max_tokens": 12, "messages": HELLO, "extra_body": GREEDY} | fields


def translated(**fields: Any) -> MessagesTranslation:
    return MessagesTranslation(
        MessagesRequest.model_validate({"model": NAME, "max_tokens": 5, "messages": HELLO} | fields)
    )


def test_a_message_is_created_and_its_tokens_are_counted(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(**asked())
    counted = claude.messages.count_tokens(model=NAME, messages=HELLO)
    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", NAME)
    assert message.stop_reason in ("max_tokens", "end_turn")
    assert message.content[0].type == "text"
    assert message.usage.output_tokens <= 12
    assert counted.input_tokens == message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)


def test_the_models_are_listed_and_described(claude: anthropic.Anthropic) -> None:
    listed = list(claude.models.list())
    assert [(model.id, model.type, model.display_name) for model in listed] == [(NAME, "model", NAME)]
    assert claude.models.retrieve(NAME) == listed[0]
    assert listed[0].created_at.tzinfo is not None


def test_the_stream_helper_ends_with_the_created_message(claude: anthropic.Anthropic) -> None:
    whole = claude.messages.create(**asked())
    with claude.messages.stream(**asked()) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert final.content[0].type == whole.content[0].type == "text"
    assert text == final.content[0].text == whole.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert stream.request_id


def test_a_shared_prefix_is_counted_as_read_from_the_cache(claude: anthropic.Anthropic) -> None:
    messages: list[Any] = [{"role": "user", "content": "The river finds the road and the garden. " * 8}]
    claude.messages.create(**asked(messages=messages))
    usage = claude.messages.create(**asked(messages=messages)).usage
    counted = claude.messages.count_tokens(model=NAME, messages=messages)
    assert (usage.cache_read_input_tokens or 0) > 0
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted.input_tokens


def test_a_forced_tool_is_called_and_its_result_sent_back(claude: anthropic.Anthropic) -> None:
    choice: Any = {"type": "tool", "name": "get_weather"}
    first = claude.messages.create(**asked(tools=[WEATHER], tool_choice=choice, max_tokens=100))
    (call,) = first.content
    assert call.type == "tool_use"
    assert first.stop_reason == "tool_use"
    assert call.input["city"] in ("Oslo", "Rome")
    with claude.messages.stream(**asked(tools=[WEATHER], tool_choice={"type": "any"}, max_tokens=100)) as stream:
        (streamed,) = stream.get_final_message().content
    assert (streamed.type, streamed.input) == ("tool_use", call.input)
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]}
    turns = [*HELLO, first.to_param(), {"role": "user", "content": [result]}]
    second = claude.messages.create(**asked(messages=turns, tools=[WEATHER]))
    assert second.usage.output_tokens > 0


def test_a_thread_is_continued_with_the_whole_conversation(claude: anthropic.Anthropic) -> None:
    thread = claude.beta.messages.thread(model=NAME, max_tokens=12, extra_body=GREEDY)
    first = thread.send(HELLO[0])
    second = thread.send({"role": "user", "content": "And the stone?"})
    asks: Any = {"role": "user", "content": "And the stone?"}
    turns: Any = [*HELLO, {"role": "assistant", "content": first.content}, asks]
    whole = claude.messages.create(**asked(messages=turns))
    assert [block.to_dict() for block in second.content] == [block.to_dict() for block in whole.content]


def test_a_tool_runner_sends_its_calls_and_tools_again(claude: anthropic.Anthropic) -> None:
    ran: list[str] = []

    def run_tool(city: Literal["Oslo", "Rome"]) -> str:
        ran.append(city)
        return "sunny"

    tool = anthropic.beta_tool(run_tool, name="get_weather", description="-", input_schema=WEATHER_INPUT)
    runner = claude.beta.messages.tool_runner(
        model=NAME, max_tokens=60, messages=HELLO, tools=[tool], tool_choice={"type": "any"}, max_iterations=3
    )
    messages = list(runner)
    assert [message.stop_reason for message in messages] == ["tool_use"] * 3
    assert len(ran) >= 2
    prompts = [message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) for message in messages]
    assert prompts == sorted(set(prompts))


def test_a_thread_that_is_continued_without_its_conversation_is_refused(server: Running) -> None:
    body = {"model": NAME, "max_tokens": 4, "messages": HELLO}
    with server.http() as http:
        begun = http.post("/v1/messages", json=body | {"thread": {"type": "create"}})
        thread = {"type": "continue", "previous_message_id": begun.json()["id"]}
        continued = http.post("/v1/messages", json=body | {"thread": thread})
    assert (begun.status_code, continued.status_code) == (200, 404)
    assert begun.headers["x-fathom-ignored-fields"] == "thread (conversations are not kept here)"
    error = continued.json()["error"]
    assert error["type"] == "not_found_error"
    assert error["details"] == {"error_code": "thread_not_found"}
    assert AnthropicErrorResponse.model_validate(continued.json()).error.details is not None
    assert error["message"].endswith("send the whole conversation without thread")


def test_thinking_comes_as_a_block_and_may_be_sent_back(claude: anthropic.Anthropic) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 4}
    message = claude.messages.create(**asked(thinking=thinking, max_tokens=20))
    thought, text = message.content
    assert (thought.type, text.type) == ("thinking", "text")
    assert thought.signature
    assert message.usage.output_tokens_details is not None
    assert message.usage.output_tokens_details.thinking_tokens > 0
    turns = [*HELLO, message.to_param(), {"role": "user", "content": "And?"}]
    claude.messages.create(**asked(messages=turns, thinking={"type": "adaptive"}))


def test_the_answer_continues_a_final_turn_of_the_assistant(server: Running, claude: anthropic.Anthropic) -> None:
    begun: list[Any] = [*HELLO, {"role": "assistant", "content": [{"type": "text", "text": "The road"}]}]
    message = claude.messages.create(**asked(messages=begun))
    body = {"model": NAME, "messages": begun, "max_tokens": 12, "temperature": 0, "continue_final_message": True}
    with server.http() as http:
        chat = http.post("/v1/chat/completions", json=body).json()
    assert message.content[0].type == "text"
    assert message.content[0].text == chat["choices"][0]["message"]["content"]
    assert message.usage.output_tokens == chat["usage"]["completion_tokens"]
    counted = claude.messages.count_tokens(model=NAME, messages=begun)
    assert counted.input_tokens == chat["usage"]["prompt_tokens"]


def test_a_stop_sequence_is_named(claude: anthropic.Anthropic) -> None:
    text = claude.messages.create(**asked()).content[0]
    assert text.type == "text"
    message = claude.messages.create(**asked(stop_sequences=[text.text[3:5]]))
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", text.text[3:5])


def test_output_follows_a_pydantic_type(claude: anthropic.Anthropic) -> None:
    message = claude.messages.parse(**asked(output_format=City, max_tokens=200))
    assert isinstance(message.parsed_output, City)
    body = {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object", "maxContains": 3}}}}
    translation = translated(**body)
    assert translation.chat.response_format is not None
    refused = translation.names.restored(ApiError(400, "response_format.json_schema.schema: x; y", param="a"))
    assert refused.message == "output_config.format.schema: x; y"


@pytest.mark.parametrize(
    ("kind", "fields", "where"),
    [
        (anthropic.NotFoundError, {"model": "claude-x"}, "model: 'claude-x' is not served here; use 'tiny'"),
        (anthropic.BadRequestError, {"messages": []}, "messages"),
        (anthropic.BadRequestError, {"max_tokens": 0}, "max_tokens"),
        (anthropic.BadRequestError, {"stop_sequences": ["x" * 999]}, "stop_sequences[0]"),
        (anthropic.BadRequestError, {"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        (anthropic.BadRequestError, {"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        (anthropic.BadRequestError, {"tool_choice": {"type": "any"}}, "tool_choice"),
        (
            anthropic.BadRequestError,
            {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}},
            "tool_choice.name",
        ),
        (anthropic.BadRequestError, {"messages": [{"role": "user", "content": "word " * 4000}]}, "messages"),
    ],
)
def test_refusals_are_the_clients_own_errors_and_name_the_field(
    claude: anthropic.Anthropic, kind: type[anthropic.APIStatusError], fields: dict[str, Any], where: str
) -> None:
    with pytest.raises(kind) as caught:
        claude.messages.create(**asked(**fields))
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"]["message"].startswith(where)
    assert body["error"]["type"] == ("not_found_error" if kind is anthropic.NotFoundError else "invalid_request_error")
    assert caught.value.request_id == body["request_id"]


def test_images_are_refused_where_the_model_sees_none(claude: anthropic.Anthropic) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": PIXEL}}
    with pytest.raises(anthropic.BadRequestError, match="sees no images"):
        claude.messages.create(**asked(messages=[{"role": "user", "content": [image]}]))
    linked = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\].content\[1\].source.url: 'https"):
        claude.messages.create(**asked(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, linked]}]))


def test_keys_are_asked_for_in_anthropics_form(serve: Serve) -> None:
    with serve(api_keys=("secret-key-1",)) as running:
        with running.anthropic("secret-key-1") as client:
            assert client.messages.create(**asked()).usage.output_tokens
        with running.anthropic("another-key") as client, pytest.raises(anthropic.AuthenticationError) as caught:
            client.messages.create(**asked())
    body: Any = caught.value.body
    assert body["error"]["type"] == "authentication_error"


def test_a_request_of_claude_codes_shape_is_answered(server: Running) -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    tools = [{**WEATHER, "name": f"mcp__server__tool_{index}"} for index in range(30)]
    body = {
        "model": NAME,
        "max_tokens": 32000,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=1;"},
            {"type": "text", "text": "You are terse.", **cached},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "<system-reminder>a</system-reminder>", **cached}]},
            {"role": "user", "content": [{"type": "text", "text": "hi", **cached}]},
        ],
        "tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 8}, WEATHER],
        "metadata": {"user_id": "user_1"},
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "temperature": 1,
        "stream": True,
    }
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219"}
    with server.http(**headers) as http:
        answer = http.post("/v1/messages?beta=true", json=body)
        counted = http.post("/v1/messages/count_tokens?beta=true", json={"model": NAME, "messages": body["messages"]})
        wide = http.post("/v1/messages", json=body | {"tools": tools})
    assert answer.status_code == 200
    assert answer.text.startswith("event: message_start\n")
    assert answer.text.rstrip().endswith('data: {"type": "message_stop"}')
    assert "web_search_20250305" in answer.headers["x-fathom-ignored-fields"]
    assert counted.json()["input_tokens"] > 0
    assert wide.status_code == 400  # thirty tools exceed the tiny model's context
    assert wide.json()["error"]["message"].startswith("messages: prompt is too long: ")


def test_a_conversation_is_translated_turn_by_turn() -> None:
    chat = translated(
        system=[{"type": "text", "text": "x-anthropic-billing-header: a"}, {"type": "text", "text": "Be terse."}],
        messages=[
            {"role": "user", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "why", "signature": "s"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "let me"},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
                    {"type": "tool_use", "id": "t2", "name": "f", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "one"},
                    {"type": "tool_result", "tool_use_id": "t2", "is_error": True},
                    {
                        "type": "document",
                        "title": "T",
                        "source": {"type": "text", "media_type": "text/plain", "data": "d"},
                    },
                    {"type": "text", "text": "c"},
                ],
            },
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "", "signature": carry("hidden")}]},
        ],
    ).chat.model_dump(exclude_none=True)
    assert chat["messages"] == [
        {"role": "system", "content": "Be terse."},
        {"role": "user", "content": "a\n\nb"},
        {
            "role": "assistant",
            "content": "let me",
            "reasoning_content": "why",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
                {"id": "t2", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "content": "one", "tool_call_id": "t1"},
        {"role": "tool", "content": "Error: ", "tool_call_id": "t2"},
        {"role": "user", "content": "T\n\nd\n\nc"},
        {"role": "assistant", "content": "", "reasoning_content": "hidden"},
    ]


def test_images_in_results_are_shown_by_the_user() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QQ=="}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "seen"}, image]}
    chat = translated(messages=[{"role": "user", "content": [result]}]).chat.model_dump(exclude_none=True)
    shown = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,QQ=="}}]
    assert chat["messages"] == [
        {"role": "tool", "content": "seen", "tool_call_id": "t"},
        {"role": "user", "content": shown},
    ]


@pytest.mark.parametrize(
    ("block", "where"),
    [
        ({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": ""}}, "source"),
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "source"),
        ({"type": "tool_result", "content": "a"}, "tool_use_id"),
        ({"type": "text"}, "text"),
    ],
)
def test_blocks_that_cannot_be_read_are_refused_by_their_place(block: dict[str, Any], where: str) -> None:
    with pytest.raises(ApiError) as caught:
        translated(messages=[{"role": "user", "content": [block]}])
    assert caught.value.message.startswith(f"messages[0].content[0].{where}: ")
