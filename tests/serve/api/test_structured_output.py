"""Answers in a given form: reasoning, calls of tools, JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from fathom.chat.output.tools import HERMES_BEGIN
from fathom.inference.language_model import LanguageModel
from fathom.tokenizer import Tokenizer
from fathom.tokenizer.special import TOOL_CALLS_BEGIN
from tests.serve.serving import NAME, Running, running

HELLO: list[Any] = [{"role": "user", "content": "How is the weather?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
        },
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
TOOLS = [WEATHER, CLOCK]
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize(("choice", "names"), [("required", {"get_weather", "get_time"}), (NAMED, {"get_weather"})])
@pytest.mark.parametrize("seed", range(3))
def test_a_call_that_is_asked_for_is_made_and_fits_its_schema(
    client: openai.OpenAI, choice: Any, names: set[str], seed: int
) -> None:
    asked: dict[str, Any] = {"model": NAME, "messages": HELLO, "tools": TOOLS, "tool_choice": choice, "seed": seed}
    answer = client.chat.completions.create(max_tokens=100, temperature=1, **asked).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    assert answer.message.tool_calls is not None
    (call,) = answer.message.tool_calls
    assert call.type == "function"
    assert re.fullmatch(r"call_[0-9a-f]{24}", call.id)
    assert call.function.name in names
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        assert arguments["city"] in ("Oslo", "Rome")
        assert 1 <= arguments["days"] <= 9
    else:
        assert arguments == {}
    calls = [
        part
        for chunk in client.chat.completions.create(stream=True, max_tokens=100, temperature=1, **asked)
        for part in chunk.choices[0].delta.tool_calls or []
    ]
    assert [(part.index, part.function.name, part.function.arguments) for part in calls if part.function] == [
        (0, call.function.name, call.function.arguments)
    ]


def test_calls_and_their_results_are_part_of_the_next_prompt(client: openai.OpenAI, server: Running) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "ten"},
    ]
    answer = client.chat.completions.create(
        model=NAME, messages=messages, tools=TOOLS, tool_choice="none", max_tokens=3
    )
    assert answer.choices[0].message.tool_calls is None
    with server.http() as http:
        ids = http.post("/tokenize", json={"messages": messages}).json()
    text = server.service.model.tokenizer.decode(ids["tokens"], skip_special=False)
    assert "get_time" in text
    assert "ten" in text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == ids["count"]


@pytest.mark.parametrize(
    ("words", "body"),
    [
        ("tool_choice", {"tool_choice": "required"}),
        ("tool_choice.function.name", {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}),
        ("given twice", {"tools": [CLOCK, CLOCK]}),
        ("response_format.json_schema.schema", {"response_format": {"type": "json_schema"}}),
        ("response_format.pattern", {"response_format": {"type": "regex"}}),
        ("guided_regex", {"guided_regex": "a+", "response_format": {"type": "json_object"}}),
        ("regex", {"guided_regex": "(a"}),
        ("json_schema", {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "strange"}}}}),
        ("tools", {"chat_template_kwargs": {"tools": []}}),
        ("tool_calls", {"messages": [{"role": "user", "content": "a", "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "a", "arguments": "{}"}}]}]}),
    ],
)  # fmt: skip
def test_forms_that_cannot_be_followed_are_refused(server: Running, words: str, body: dict[str, Any]) -> None:
    with server.http() as http:
        answer = http.post("/v1/chat/completions", json={"messages": HELLO, **body})
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]


def test_json_of_a_schema_is_what_the_answer_is(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "size": {"type": "boolean"}},
        "required": ["colour", "size"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(
        model=NAME, messages=HELLO, response_format=form, max_tokens=400, n=3, seed=1, extra_body={"top_k": 40}
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        found = json.loads(choice.message.content or "")
        assert found["colour"] in ("red", "blue")
        assert isinstance(found["size"], bool)


@pytest.mark.parametrize(
    "body",
    [{"guided_regex": "[ab]{3}-[0-9]{2}"}, {"response_format": {"type": "regex", "pattern": "[ab]{3}-[0-9]{2}"}}],
)
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_a_pattern_is_matched_whole(server: Running, body: dict[str, Any], path: str) -> None:
    with server.http() as http:
        prompt = {"messages": HELLO} if path.startswith("chat") else {"prompt": "a"}
        choice = http.post(f"/v1/{path}", json=body | prompt | {"max_tokens": 50, "temperature": 1.5}).json()[
            "choices"
        ][0]
    text = choice["message"]["content"] if path.startswith("chat") else choice["text"]
    assert re.fullmatch("[ab]{3}-[0-9]{2}", text)
    assert choice["finish_reason"] == "stop"


def test_an_object_is_begun_where_any_is_asked_for(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=NAME, messages=HELLO, response_format={"type": "json_object"}, max_tokens=60
    ).choices[0]
    assert (answer.message.content or "").startswith("{")
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.message.content or ""), dict)


@pytest.fixture(scope="module")
def reasoning(opened: LanguageModel) -> Iterator[Running]:
    """A server whose template opens the reasoning in the prompt, as that of R1 does."""
    tokenizer = opened.tokenizer
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
    )
    thinking = Tokenizer(tokenizer.tokenizer_json, {**tokenizer.config, "chat_template": template})
    with running(LanguageModel(opened.model, thinking, opened.path, opened.eos_ids)) as found:
        yield found


def test_reasoning_opened_by_the_prompt_is_apart_under_both_names(reasoning: Running) -> None:
    body = {
        "messages": HELLO,
        "max_tokens": 40,
        "thinking_budget": 6,
        "logit_bias": {str(reasoning.service.model.tokenizer.special_tokens["</think>"]): -100, "1": -100},
        "seed": 5,
    }
    with reasoning.http() as http:
        answer = http.post("/v1/chat/completions", json=body).json()
        events = [
            json.loads(line.removeprefix("data: "))
            for line in http.post("/v1/chat/completions", json=body | {"stream": True}).text.split("\n\n")
            if line and "[DONE]" not in line
        ]
    message = answer["choices"][0]["message"]
    assert message["reasoning"]
    assert message["reasoning"] == message["reasoning_content"]
    assert message["content"]
    assert "think>" not in message["reasoning"] + message["content"]
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 7  # the closing tag is drawn inside
    deltas = [event["choices"][0]["delta"] for event in events]
    for name in ("reasoning", "reasoning_content", "content"):
        assert "".join(delta.get(name) or "" for delta in deltas) == message[name]


def test_a_form_is_obeyed_once_the_reasoning_has_ended(reasoning: Running) -> None:
    for body in ({"guided_regex": "yes|no"}, {"tools": [CLOCK], "tool_choice": "required"}):
        with reasoning.http() as http:
            answer = http.post(
                "/v1/chat/completions", json={"messages": HELLO, "max_tokens": 120, "thinking_budget": 5, **body}
            ).json()
        choice = answer["choices"][0]
        if "tools" in body:
            assert choice["finish_reason"] == "tool_calls", choice
            assert choice["message"]["tool_calls"][0]["function"]["name"] == "get_time"
        else:
            assert choice["message"]["content"] in ("yes", "no")


def test_reasoning_can_be_closed_in_the_prompt(reasoning: Running) -> None:
    never = {str(reasoning.service.model.tokenizer.special_tokens["<think>"]): -100}
    for body in ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}):
        with reasoning.http() as http:
            answer = http.post(
                "/v1/chat/completions", json={"messages": HELLO, "max_tokens": 9, "logit_bias": never, **body}
            )
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["reasoning"] is None


SQUARE: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "n",
        "schema": {"type": "object", "properties": {"n": {"enum": [1, 4]}}, "required": ["n"]},
    },
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("calls", [True, False])
def test_an_answer_in_a_format_may_be_a_call_where_there_are_tools(
    client: openai.OpenAI, tokenizer: Tokenizer, calls: bool, seed: int
) -> None:
    begins = {
        tokenizer.encode(text, allow_special=True, continues=True)[0] for text in (TOOL_CALLS_BEGIN, HERMES_BEGIN)
    }
    answer = client.chat.completions.create(
        model=NAME,
        messages=HELLO,
        tools=TOOLS,
        response_format=SQUARE,
        logit_bias={str(token_id): 100 if calls else -100 for token_id in begins},
        max_tokens=100,
        seed=seed,
    ).choices[0]
    if calls:
        assert answer.finish_reason == "tool_calls"
        assert answer.message.tool_calls is not None
        assert answer.message.tool_calls[0].type == "function"
        assert answer.message.tool_calls[0].function.name in ("get_weather", "get_time")
    else:
        assert answer.message.tool_calls is None
        assert json.loads(answer.message.content or "")["n"] in (1, 4)
