"""Clients of OpenAI's Responses API and of Anthropic's interface against a server of a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import openai
from pydantic import BaseModel

from tests.compatibility.case import Case, Outcome
from tests.compatibility.served_model import served
from tests.serve.serving import NAME, Running

HELLO: list[Any] = [{"role": "user", "content": "The river"}]
WEATHER = {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]}
OPENAI_TOOL: Any = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}
ANTHROPIC_TOOL: Any = {"name": "weather", "input_schema": WEATHER}
IGNORED = "x-fathom-ignored-fields"


class Answer(BaseModel):
    yes: bool


def _served(work: Callable[[Running], Outcome]) -> Callable[[Path], Outcome]:
    """Return a case's ``run`` that does ``work`` with a server of its own; a client's error is a refusal."""

    def unless_refused(server: Running) -> Outcome:
        try:
            return work(server)
        except openai.APIStatusError as error:
            body: Any = error.body
            return Outcome("refused", body["message"])
        except anthropic.APIStatusError as error:
            found: Any = error.body
            return Outcome("refused", found["error"]["message"])

    return served(unless_refused)


def _responses(**fields: Any) -> Callable[[Path], Outcome]:
    """Create a response by OpenAI's client."""

    def work(server: Running) -> Outcome:
        with server.client() as client:
            asked = {"model": NAME, "input": HELLO, "max_output_tokens": 40, "temperature": 0} | fields
            raw = client.responses.with_raw_response.create(**asked)
            ignored = raw.headers.get(IGNORED)
            if ignored is not None:
                return Outcome("ignored", ignored)
            kinds = [item.type for item in raw.parse().output]
            return Outcome("works", "output: " + ", ".join(kinds))

    return _served(work)


def _messages(**fields: Any) -> Callable[[Path], Outcome]:
    """Create a message by Anthropic's client."""

    def work(server: Running) -> Outcome:
        with server.anthropic() as client:
            greedy = {"temperature": 0}
            asked = {"model": NAME, "messages": HELLO, "max_tokens": 40, "extra_body": greedy} | fields
            raw = client.messages.with_raw_response.create(**asked)
            ignored = raw.headers.get(IGNORED)
            if ignored is not None:
                return Outcome("ignored", ignored)
            return Outcome("works", "content: " + ", ".join(block.type for block in raw.parse().content))

    return _served(work)


def _stream_helper(server: Running) -> Outcome:
    with server.client() as client:
        fields: Any = {"model": NAME, "input": HELLO, "max_output_tokens": 40, "temperature": 0, "text_format": Answer}
        with client.responses.stream(**fields) as stream:
            parsed = stream.get_final_response().output_parsed
    return Outcome("works", "output_parsed is the type" if isinstance(parsed, Answer) else "refused")


def _chain(server: Running) -> Outcome:
    with server.client() as client:
        fields: Any = {"model": NAME, "max_output_tokens": 4, "temperature": 0}
        first = client.responses.create(input=HELLO, **fields)
        second = client.responses.create(input="And?", previous_response_id=first.id, **fields)
        turns: Any = [*HELLO, {"role": "assistant", "content": first.output_text}, {"role": "user", "content": "And?"}]
        whole = client.responses.create(input=turns, **fields)
    assert second.output_text == whole.output_text
    return Outcome("works", "as with the whole conversation")


def _codex(server: Running) -> Outcome:
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"},
        {"type": "function_call", "name": "shell", "arguments": "{}", "call_id": "c"},
        {"type": "function_call_output", "call_id": "c", "output": "d"},
    ]
    body = {
        "model": NAME,
        "instructions": "You are a coding agent.",
        "input": items,
        "tools": [{"type": "function", "name": "shell", "parameters": WEATHER}, {"type": "local_shell"}],
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "max_output_tokens": 4,
    }
    with server.http() as http:
        answer = http.post("/v1/responses", json=body)
    last = answer.text.rstrip().split("\n\n")[-1].split("\n")[0]
    return Outcome("works", f"{last}; ignored: {answer.headers[IGNORED]}")


def _claude_code(server: Running) -> Outcome:
    cached = {"cache_control": {"type": "ephemeral"}}
    body = {
        "model": NAME,
        "max_tokens": 4,
        "system": [{"type": "text", "text": "You are terse.", **cached}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", **cached}]}],
        "tools": [{"type": "web_search_20250305", "name": "web_search"}, ANTHROPIC_TOOL],
        "thinking": {"type": "adaptive"},
        "stream": True,
    }
    with server.http() as http:
        answer = http.post("/v1/messages?beta=true", json=body, headers={"anthropic-version": "2023-06-01"})
    last = answer.text.rstrip().split("\n\n")[-1].split("\n")[0]
    return Outcome("works", f"{last}; ignored: {answer.headers[IGNORED]}")


def _count(server: Running) -> Outcome:
    with server.anthropic() as client:
        counted = client.messages.count_tokens(model=NAME, messages=HELLO).input_tokens
        usage = client.messages.create(model=NAME, messages=HELLO, max_tokens=1).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    return Outcome("works", f"input_tokens: {counted}")


def _tool_runner(server: Running) -> Outcome:
    tool = anthropic.beta_tool(lambda city: "sunny", name="weather", description="-", input_schema=WEATHER)
    fields: Any = {"model": NAME, "messages": HELLO, "max_tokens": 60, "tool_choice": {"type": "any"}}
    with server.anthropic() as client:
        runner = client.beta.messages.tool_runner(tools=[tool], max_iterations=2, **fields)
        return Outcome("works", "stop reasons: " + ", ".join(str(message.stop_reason) for message in runner))


def _error_form(server: Running) -> Outcome:
    with server.http() as http:
        answer = http.post("/v1/messages", json={"model": "claude-opus-5", "max_tokens": 1, "messages": HELLO})
    body = answer.json()
    return Outcome("refused", json.dumps({"type": body["type"], "error": body["error"]}))


CASES: tuple[Case, ...] = (
    Case(
        what="/v1/responses by the openai client",
        zh="openai 客户端调用 /v1/responses",
        source="ggml-org/llama.cpp#14702",
        expected="works",
        run=_responses(),
    ),
    Case(
        what="responses.stream with a pydantic text_format",
        zh="responses.stream 搭配 pydantic 的 text_format",
        expected="works",
        run=_served(_stream_helper),
    ),
    Case(
        what="previous_response_id",
        zh="用 previous_response_id 继续对话",
        expected="works",
        run=_served(_chain),
    ),
    Case(
        what="a Responses id of another server",
        zh="其他服务器的 Responses id",
        expected="refused",
        run=_responses(previous_response_id="resp_68af1c"),
    ),
    Case(
        what="a function tool that must be called, Responses",
        zh="Responses：必须调用的函数工具",
        expected="works",
        run=_responses(tools=[OPENAI_TOOL], tool_choice="required", max_output_tokens=120),
    ),
    Case(
        what="a forced tool beside text.format, as instructor and the Agents SDK send it, Responses",
        zh="Responses：必须调用的工具与 text.format 并用（instructor 与 Agents SDK 如此发送）",
        expected="works",
        run=_responses(
            tools=[OPENAI_TOOL],
            tool_choice={"type": "function", "name": "weather"},
            text={"format": {"type": "json_schema", "name": "answer", "schema": WEATHER}},
            max_output_tokens=120,
        ),
    ),
    Case(
        what="hosted tools (web_search), Responses",
        zh="Responses：托管工具（web_search）",
        expected="ignored",
        run=_responses(tools=[{"type": "web_search"}]),
    ),
    Case(
        what="a background response",
        zh="后台响应（background）",
        expected="refused",
        run=_responses(background=True),
    ),
    Case(
        what="Codex CLI's requests",
        zh="Codex CLI 的请求",
        expected="works",
        run=_served(_codex),
    ),
    Case(
        what="/v1/messages by the anthropic client",
        zh="anthropic 客户端调用 /v1/messages",
        expected="works",
        run=_messages(),
    ),
    Case(
        what="Claude Code's requests",
        zh="Claude Code 的请求",
        expected="works",
        run=_served(_claude_code),
    ),
    Case(
        what="/v1/messages/count_tokens equals what a message counts",
        zh="/v1/messages/count_tokens 与消息的实际用量一致",
        expected="works",
        run=_served(_count),
    ),
    Case(
        what="thinking with budget_tokens, Messages",
        zh="Messages：带 budget_tokens 的思考",
        expected="works",
        run=_messages(thinking={"type": "enabled", "budget_tokens": 4}),
    ),
    Case(
        what="tool_choice any, Messages",
        zh="Messages：tool_choice 为 any",
        expected="works",
        run=_messages(tools=[ANTHROPIC_TOOL], tool_choice={"type": "any"}, max_tokens=120),
    ),
    Case(
        what="tools that run on Anthropic's servers",
        zh="在 Anthropic 服务器上运行的工具",
        expected="ignored",
        run=_messages(tools=[{"type": "web_search_20250305", "name": "web_search"}]),
    ),
    Case(
        what="the anthropic client's tool_runner, which continues a thread",
        zh="anthropic 客户端的 tool_runner（以 thread 继续对话）",
        expected="works",
        run=_served(_tool_runner),
    ),
    Case(
        what="a thread continued without its earlier messages, Messages",
        zh="Messages：继续 thread 而不附先前的消息",
        expected="refused",
        run=_messages(extra_body={"thread": {"type": "continue", "previous_message_id": "msg_1"}}),
    ),
    Case(
        what="a PDF document block",
        zh="PDF 文档块",
        expected="refused",
        run=_messages(
            messages=[
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "document",
                            "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="},
                        }
                    ],
                }
            ]
        ),
    ),
    Case(
        what="a model that is not served, in Anthropic's form of errors",
        zh="未提供的模型：按 Anthropic 的错误格式回应",
        expected="refused",
        run=_served(_error_form),
    ),
)
