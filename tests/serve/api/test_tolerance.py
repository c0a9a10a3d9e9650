"""Requests as other servers' clients write them."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.serve.api.structured_output import structured_output_options
from fathom.serve.errors import ApiError
from fathom.serve.http.request_body import parse_body
from fathom.serve.schemas.chat import ChatCompletionRequest, Function, JsonSchema, Message, Part, ResponseFormat
from fathom.serve.settings import Limits
from tests.serve.serving import NAME, Running

SCHEMAS = (ChatCompletionRequest, Message, Part, JsonSchema, ResponseFormat, Function)
KNOWN = {"id", "function", "schema", "include_usage"}.union(*(model.model_fields for model in SCHEMAS))
HELLO: dict[str, Any] = {"role": "user", "content": "The river"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}},
    "required": ["a"],
    "additionalProperties": False,
}
TIME: dict[str, Any] = {"name": "get_time", "parameters": {"type": "object", "properties": {}}}
PLACE: dict[str, Any] = {
    "name": "get_place",
    "parameters": {"type": "object", "properties": {"of": {"enum": ["stone", "tower"]}}, "required": ["of"]},
}
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": function} for function in (TIME, PLACE)]


def read(body: dict[str, Any]) -> tuple[ChatCompletionRequest, str]:
    found, ignored = parse_body(json.dumps({"messages": [HELLO]} | body).encode(), ChatCompletionRequest)
    return found, ignored.text


def ask(server: Running, **body: Any) -> dict[str, Any]:
    with server.http() as http:
        answer = http.post("/v1/chat/completions", json={"messages": [HELLO], "max_tokens": 4} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def refused(server: Running, **body: Any) -> str:
    with server.http() as http:
        answer = http.post("/v1/chat/completions", json={"messages": [HELLO], "max_tokens": 4} | body)
    assert answer.status_code == 400, answer.text
    return str(answer.json()["error"]["message"])


def prompt_of(server: Running, messages: list[dict[str, Any]], **body: Any) -> str:
    with server.http() as http:
        answer = http.post("/tokenize", json={"messages": messages} | body)
        assert answer.status_code == 200, answer.text
    return server.service.model.tokenizer.decode(answer.json()["tokens"], skip_special=False)


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"max_new_tokens": 7}, "max_tokens", 7),
        ({"num_predict": -1}, "max_tokens", -1),
        ({"n_predict": 7.0}, "max_tokens", 7),
        ({"repeat_penalty": 1.1}, "repetition_penalty", 1.1),
        ({"stop_sequences": ["a"]}, "stops", ["a"]),
        ({"random_seed": 3}, "seed", 3),
        ({"options": {"temperature": 0, "num_predict": 7}}, "temperature", 0),
        ({"options": {"temperature": 0, "num_predict": 7}}, "max_tokens", 7),
        ({"options": {"repeat_penalty": 1.2}}, "repetition_penalty", 1.2),
        ({"enable_thinking": False}, "thinking", False),
        ({"reasoning": {"effort": "low"}}, "reasoning_effort", "low"),
        ({"reasoning": {"enabled": True}}, "thinking", True),
        ({"reasoning": {"max_tokens": 9}}, "thinking_budget", 9),
    ],
)
def test_fields_of_other_names_are_honoured(given: dict[str, Any], field: str, value: Any) -> None:
    body, ignored = read(given)
    assert getattr(body, field) == value
    assert ignored == ""


@pytest.mark.parametrize(
    ("given", "field", "value", "named"),
    [
        ({"max_tokens": 5, "num_predict": 7}, "max_tokens", 5, "num_predict (max_tokens has another value)"),
        (
            {"temperature": 1, "options": {"temperature": 0.5}},
            "temperature",
            1,
            "options.temperature (temperature has another value)",
        ),
        (
            {"max_completion_tokens": 5, "max_tokens": 7},
            "max_completion_tokens",
            5,
            "max_tokens (max_completion_tokens has another value)",
        ),
        ({"max_tokens": 5, "num_predict": 5}, "max_tokens", 5, ""),
        ({"options": {"num_ctx": 8192, "mirostat": 1}}, "max_tokens", None, "options.num_ctx, options.mirostat"),
        ({"stream_options": {"include_usage": True}}, "stream", None, "stream_options (the response is no stream)"),
    ],
)
def test_a_fields_own_name_wins_and_the_other_is_named(
    given: dict[str, Any], field: str, value: Any, named: str
) -> None:
    body, ignored = read(given)
    assert getattr(body, field) == value
    assert ignored == named


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"guided_json": SCHEMA}, {"schema": SCHEMA}),
        ({"guided_json": json.dumps(SCHEMA)}, {"schema": SCHEMA}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"guided_choice": ["a", 'b "c"']}, {"grammar": 'start: "a" | "b \\"c\\""\n'}),
        ({"guided_grammar": 'start: "a"'}, {"grammar": 'start: "a"'}),
        ({"structured_outputs": {"json": SCHEMA}}, {"schema": SCHEMA}),
        ({"structured_outputs": {"regex": "a+"}}, {"regex": "a+"}),
        ({"structured_outputs": {"json_object": True}}, {"json_object": True}),
        ({"json_schema": SCHEMA}, {"schema": SCHEMA}),
        ({"regex": "a+"}, {"regex": "a+"}),
        ({"format": "json"}, {"json_object": True}),
        ({"format": SCHEMA}, {"schema": SCHEMA}),
        ({"format": ""}, {}),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, {"schema": SCHEMA}),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
         {"schema": SCHEMA}),
        ({"response_format": {"type": "text"}, "guided_regex": "a+"}, {"regex": "a+"}),
        ({"response_format": None}, {}),
    ],
)  # fmt: skip
def test_every_form_of_structured_output_means_the_same(given: dict[str, Any], option: dict[str, Any]) -> None:
    body, ignored = read(given)
    assert structured_output_options(body, body.response_format, Limits()) == option
    assert ignored == ""


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"guided_json": "not json"}, "guided_json: 'not json' is no JSON Schema; give an object"),
        ({"guided_choice": []}, "guided_choice: is empty"),
        ({"guided_regex": "a", "guided_json": SCHEMA}, "guided_json: comes with guided_regex; give one of the two"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag: cannot be followed"),
        ({"grammar": "root ::= ((("}, "grammar: cannot be read"),
        ({"grammar": "root ::= " + '"a" ' * 30_000}, "grammar: its 120009 characters exceed 65536; shorten it"),
        ({"guided_json": "[" * 70_000}, "guided_json: its 70000 characters exceed 65536; shorten it"),
    ],
)
def test_formats_that_cannot_be_followed_are_refused(given: dict[str, Any], words: str) -> None:
    body, _ = read(given)
    with pytest.raises(ApiError, match=re.escape(words)):
        structured_output_options(body, body.response_format, Limits())


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        ({"guided_choice": ["yes", "no (at all)"]}, r"yes|no \(at all\)"),
        ({"grammar": 'root ::= "a" [0-9]+ "b"'}, r"a\d+b"),
        ({"guided_grammar": 'start: "x" /[0-9]/'}, r"x\d"),
    ],
)
def test_grammars_and_choices_are_followed(server: Running, given: dict[str, Any], pattern: str) -> None:
    choice = ask(server, **given, max_tokens=60)["choices"][0]
    assert re.fullmatch(pattern, choice["message"]["content"]) or choice["finish_reason"] == "length"


CALL = {"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ({"role": "developer", "content": "Be brief."}, "Be brief."),
        ({"role": "user", "content": [{"type": "input_text", "text": "One"}]}, "One"),
        ({"role": "user", "content": []}, ""),
        ({"role": "assistant", "content": None}, ""),
        ({"role": "assistant"}, ""),
        ({"role": "assistant", "content": None, "refusal": "I cannot."}, "I cannot."),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "I cannot."}]}, "I cannot."),
        ({"role": "assistant", "content": [{"type": "output_text", "text": "Two"}]}, "Two"),
        ({"role": "assistant", "content": "Two", "audio": None, "annotations": [], "function_call": None}, "Two"),
        ({"role": "assistant", "content": None, "tool_calls": [CALL | {"index": 0, "id": None}]}, "get_time"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "get_time", "arguments": {"zone": "here"}}}]},
            '"zone": "here"',
        ),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "get_time", "arguments": None}}]}, "get_time"),
        ({"role": "assistant", "content": None, "function_call": {"name": "get_time", "arguments": "{}"}}, "get_time"),
        ({"role": "function", "name": "get_time", "content": "ten"}, "ten"),
        ({"role": "tool", "content": None, "tool_call_id": "call_1"}, ""),
        ({"role": "tool", "content": [{"type": "text", "text": "ten"}], "tool_call_id": "call_1"}, "ten"),
        ({"role": "user", "content": "One", "tool_calls": [], "name": None}, "One"),
    ],
)
def test_messages_are_read_in_every_form_of_the_interface(server: Running, message: dict[str, Any], shown: str) -> None:
    assert shown in prompt_of(server, [HELLO, message, HELLO])


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]},
         "messages[0].content[0].type: 'input_audio' cannot be read by this server; send text and image_url parts"),
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, "messages[0].content[0].type: 'file'"),
        ({"role": "user", "content": [{"type": "video_url"}]}, "messages[0].content[0].type: 'video_url'"),
        ({"role": "user", "content": None}, "messages[0].content: is missing; give a text"),
        ({"role": "user", "content": "a", "function_call": {"name": "f", "arguments": ""}},
         "messages[0].function_call: a message of role user calls no tools"),
    ],
)  # fmt: skip
def test_messages_that_cannot_be_read_are_refused(server: Running, message: dict[str, Any], words: str) -> None:
    assert words in refused(server, messages=[message])


def test_a_format_leaves_a_forced_call_as_it_is(server: Running) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    asked = {"tools": TOOLS, "tool_choice": "required", "max_tokens": 120, "temperature": 0}
    plain, formed = (ask(server, **asked, **given)["choices"][0] for given in ({}, {"response_format": form}))
    assert formed["finish_reason"] == "tool_calls"
    assert [call["function"] for call in formed["message"]["tool_calls"]] == [
        call["function"] for call in plain["message"]["tool_calls"]
    ]
    unreadable = {"type": "json_schema", "json_schema": {"name": "answer"}}
    assert "response_format.json_schema.schema: is missing" in refused(server, **asked, response_format=unreadable)


def test_what_the_server_sent_may_be_sent_back(server: Running) -> None:
    first = ask(server, max_tokens=5)["choices"][0]["message"]
    called = ask(server, tools=TOOLS, tool_choice="required", max_tokens=120)["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": "ten"}
    sent = first | {"fathom": {"problems": ["a"]}, "audio": None, "annotations": []}
    ask(server, messages=[HELLO, sent, HELLO, called, result, HELLO], tools=TOOLS)


def test_former_functions_are_called_in_the_former_form(client: openai.OpenAI) -> None:
    asked: Any = {"model": NAME, "messages": [HELLO], "functions": [TIME, PLACE], "seed": 1, "max_tokens": 120}
    forced: Any = asked | {"function_call": {"name": "get_place"}}
    choice = client.chat.completions.create(**forced).choices[0]
    assert choice.finish_reason == "function_call"
    assert choice.message.tool_calls is None
    assert choice.message.function_call is not None
    assert choice.message.function_call.name == "get_place"
    assert json.loads(choice.message.function_call.arguments)["of"] in ("stone", "tower")
    chunks = list(client.chat.completions.create(stream=True, **forced))
    (delta,) = [chunk.choices[0].delta.function_call for chunk in chunks if chunk.choices[0].delta.function_call]
    assert (delta.name, delta.arguments) == ("get_place", choice.message.function_call.arguments)
    assert chunks[-1].choices[0].finish_reason == "function_call"
    again: Any = [HELLO, choice.message, {"role": "function", "name": "get_place", "content": "here"}]
    client.chat.completions.create(**asked | {"messages": again, "max_tokens": 3})


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ("any", {"get_time", "get_place"}),
        ({"mode": "required", "tools": [{"type": "function", "function": {"name": "get_place"}}]}, {"get_place"}),
    ],
)
def test_a_call_is_forced_among_the_allowed_tools(server: Running, choice: Any, called: set[str]) -> None:
    wanted = choice if isinstance(choice, str) else {"type": "allowed_tools", "allowed_tools": choice}
    answer = ask(server, tools=TOOLS, tool_choice=wanted, max_tokens=120, parallel_tool_calls=False)
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"] in called


def test_only_allowed_tools_are_shown(server: Running) -> None:
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "get_time"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    some = ask(server, tools=TOOLS, tool_choice=choice)["usage"]["prompt_tokens"]
    assert some == ask(server, tools=TOOLS[:1])["usage"]["prompt_tokens"]
    choice["allowed_tools"]["tools"][0]["function"]["name"] = "get_tim"  # type: ignore[index]
    words = "tool_choice.allowed_tools.tools[0].function.name: 'get_tim' is not among the tools; name one of them"
    assert words in refused(server, tools=TOOLS, tool_choice=choice)


def test_tools_that_are_no_functions_are_ignored_and_cannot_be_forced(server: Running) -> None:
    others = [{"type": "web_search"}, {"type": "custom", "custom": {"name": "run"}}]
    body, ignored = read({"tools": [*others, TOOLS[0]]})
    assert [tool.function.name for tool in body.function_tools] == ["get_time"]
    assert "tools[0] (only functions can be called) (2 times)" in ignored
    assert "there are no tools" in refused(server, tools=others, tool_choice="required")
    assert "tool_choice" in refused(server, tools=others, tool_choice={"type": "custom", "custom": {"name": "run"}})
    assert "tools[0].function: is missing" in refused(server, tools=[{"type": "function", "name": "flat"}])


def test_audio_is_not_promised(server: Running) -> None:
    assert "modalities: ['text', 'audio'] has more than text; ask for ['text']" in refused(
        server, modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"}
    )
    ask(server, modalities=["text"], audio=None, prediction=None, web_search_options={})


BEGUN = {"role": "assistant", "content": "The stone hears "}


@pytest.mark.parametrize(
    "given",
    [
        {"messages": [HELLO, BEGUN], "continue_final_message": True, "add_generation_prompt": False},
        {"messages": [HELLO, BEGUN], "continue_final_message": True},
        {"messages": [HELLO, BEGUN | {"prefix": True}]},
        {"messages": [HELLO, BEGUN | {"partial": True}]},
    ],
)
def test_an_assistants_beginning_is_continued(server: Running, given: dict[str, Any]) -> None:
    text = prompt_of(server, [HELLO, BEGUN], continue_final_message=True)
    assert text.endswith("The stone hears ")
    asked = {"temperature": 0, "max_tokens": 8}
    answer = ask(server, **given, **asked)
    with server.http() as http:
        prompt = http.post("/tokenize", json={"messages": [HELLO, BEGUN], "continue_final_message": True}).json()
        plain = http.post("/v1/completions", json={"prompt": prompt["tokens"], **asked}).json()
    assert answer["usage"]["prompt_tokens"] == prompt["count"]
    assert answer["choices"][0]["message"]["content"] == plain["choices"][0]["text"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"messages": [HELLO | {"prefix": True}]}, "messages[0].prefix: is set on a message that cannot be continued"),
        ({"messages": [BEGUN | {"prefix": True}, HELLO]}, "messages[0].prefix: is set"),
        ({"continue_final_message": True}, "messages[0].role: 'user' cannot be continued; end with an assistant"),
        (
            {"messages": [HELLO, BEGUN], "continue_final_message": True, "add_generation_prompt": True},
            "add_generation_prompt: comes with continue_final_message or prefix; give one of the two",
        ),
        (
            {"messages": [HELLO, {"role": "assistant", "tool_calls": [CALL]}], "continue_final_message": True},
            "messages[1].tool_calls: a message that calls tools cannot be continued; answer its calls first",
        ),
    ],
)
def test_what_cannot_be_continued_is_refused(server: Running, given: dict[str, Any], words: str) -> None:
    assert words in refused(server, **given)


def test_the_least_top_p_is_the_most_likely_token(server: Running) -> None:
    texts = {str(ask(server, seed=seed, **nucleus)["choices"][0]["message"]["content"])
             for seed, nucleus in ((1, {"top_p": 0}), (2, {"top_p": 0}), (3, {"temperature": 0}))}  # fmt: skip
    assert len(texts) == 1


names = st.text(min_size=1, max_size=12).filter(lambda name: name not in KNOWN)
values = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)
PLAIN: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f"}}]},
    ],
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "stream": True,
    "stream_options": {"include_usage": True},
    "response_format": {"type": "json_schema", "json_schema": {"schema": {}}},
}


def objects(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a request that have a schema of ours."""
    found = [value] if isinstance(value, dict) else []
    inner = [each for name, each in value.items() if name != "schema"] if isinstance(value, dict) else value
    return found + [each for item in inner if isinstance(item, dict | list) for each in objects(item)]


@given(extras=st.lists(st.tuples(st.integers(0, 20), names, values), max_size=6))
@settings(max_examples=100, deadline=None)
def test_unknown_fields_anywhere_change_nothing_and_are_counted(extras: list[tuple[int, str, Any]]) -> None:
    body = copy.deepcopy(PLAIN)
    places = objects(body)
    for place, name, value in extras:
        places[place % len(places)][name] = value
    expected, none = parse_body(json.dumps(PLAIN).encode(), ChatCompletionRequest)
    found, ignored = parse_body(json.dumps(body).encode(), ChatCompletionRequest)
    assert found == expected
    assert not len(none)
    assert len(ignored) == len({(place % len(places), name) for place, name, _ in extras})
    assert ignored.text.isascii()
