"""Messages for chat templates that read less: tools, calls and results as text in Hermes's format, text as parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fathom.chat.output.tools import HERMES_BEGIN, HERMES_END
from fathom.chat.parts import checked_message
from fathom.chat.template_probe import read_calls, reads_parts, reads_text, reads_tools

_INTRODUCTION = (
    "You can call the tools below, given with the JSON Schema of their parameters. To call one, answer with\n"
    f'{HERMES_BEGIN}\n{{"name": NAME, "arguments": OBJECT}}\n{HERMES_END}\n\n'
)


def fit_messages_to_template(
    template: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Return messages that ``template`` can render: tools, calls and results it does not read become text.

    A text becomes a part where the template writes parts only, and would leave it out. What the template reads itself
    is unchanged.

    Raises:
        DataError: a message is malformed, or the template meets a limit.
    """
    shown = [checked_message(message, f"messages[{index}]") for index, message in enumerate(messages)]
    called = any(message["role"] == "tool" or message.get("tool_calls") for message in shown)
    if not called or read_calls(template).shown:
        fitted: list[Mapping[str, Any]] = list(messages)
    else:
        fitted = [_as_text(message, checked) for message, checked in zip(messages, shown, strict=True)]
    if tools and not reads_tools(template):
        fitted = _introduced(fitted, tools)
    return [_as_parts(template, message) for message in fitted]


def _as_parts(template: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
    content, role = message.get("content"), message["role"]
    if not isinstance(content, str) or reads_text(template, role) or not reads_parts(template, role):
        return message
    return {**message, "content": [{"type": "text", "text": content}]}


def _as_text(message: Mapping[str, Any], checked: Mapping[str, Any]) -> Mapping[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": _around(message["content"], "<tool_response>\n", "\n</tool_response>")}
    calls = checked.get("tool_calls")
    if message["role"] != "assistant" or not calls:
        return message
    text = "\n".join(f"{HERMES_BEGIN}\n{_call(call['function'])}\n{HERMES_END}" for call in calls)
    content = message.get("content")
    return {"role": "assistant", "content": _around(content, "", "\n" + text) if content else text}


def _call(function: Mapping[str, Any]) -> str:
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": {text}}}'


def _introduced(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    section = _INTRODUCTION + "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": _around(messages[0]["content"], "", "\n\n" + section)}
        return [first, *messages[1:]]
    return [{"role": "system", "content": section}, *messages]


def _around(content: Any, before: str, after: str) -> Any:
    if isinstance(content, str):
        return before + content + after
    return [{"type": "text", "text": before}, *content, {"type": "text", "text": after}]
