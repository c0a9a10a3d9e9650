"""Messages with text and image parts or tool calls, converted to what a chat template reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fathom.errors import DataError

_READS_PARTS = re.compile(r"""\[\s*['"]type['"]\s*\]|\.type\b|\.get\(\s*['"]type['"]""")

_READS_MAPPING = re.compile(r"""arguments['"]?\s*\]?\s*\|\s*(?:tojson|items)|arguments\.items\(""")


def checked_message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a message with a content that templates can take, and its tool calls checked.

    An assistant's content may be None or missing where it calls tools.
    """
    role = message.get("role") if isinstance(message, Mapping) else None
    if not isinstance(role, str):
        raise DataError(f"{where}.role: expected text, got {type(role).__name__}; give a string")
    calls = message.get("tool_calls")
    checked = dict(message)
    if role == "assistant" and calls:
        checked["tool_calls"] = _checked_calls(calls, f"{where}.tool_calls")
        checked.setdefault("content", None)
        if checked["content"] is None:
            return checked
    return checked | {"content": checked_content(message.get("content"), f"{where}.content")}


def checked_content(content: Any, where: str) -> str | list[dict[str, str]]:
    """Return a message's content as text, or as parts ``{"type": "text", "text": ...}`` and ``{"type": "image"}``.

    Other fields of an image part are dropped: templates only place the image.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(f"{where}: expected text or a list of parts, got {type(content).__name__}; give a string")
    return [_checked_part(part, f"{where}[{index}]") for index, part in enumerate(content)]


def _checked_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise DataError(f"{where}: expected a list, got {type(calls).__name__}; give a list of calls")
    checked = []
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(f"{where}[{index}].function.name: is missing; give the name of the tool that was called")
        arguments = function.get("arguments", "{}")
        if not isinstance(arguments, str | Mapping):
            raise DataError(f"{where}[{index}].function.arguments: expected JSON, got {type(arguments).__name__}")
        checked.append({**call, "function": {**function, "arguments": arguments}})
    return checked


def format_tool_calls_for_template(template: str, message: dict[str, Any]) -> dict[str, Any]:
    """Convert the arguments of a checked message's calls to what ``template`` reads: a mapping, or JSON text."""
    if message["role"] != "assistant" or not message.get("tool_calls"):
        return message
    convert = _as_mapping if _READS_MAPPING.search(template) else _as_json
    calls = [
        call | {"function": {**call["function"], "arguments": convert(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return message | {"tool_calls": calls}


def _as_mapping(arguments: str | Mapping[str, Any]) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments  # a model may have written broken JSON, which is passed on unchanged


def _as_json(arguments: str | Mapping[str, Any]) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def map_text(content: Any, change: Callable[[str], str]) -> Any:
    """Apply ``change`` to the text of a content or of its text parts; None stays None."""
    if content is None:
        return None
    if isinstance(content, str):
        return change(content)
    return [part | {"text": change(part["text"])} if part["type"] == "text" else part for part in content]


def text_length(content: str | Sequence[Mapping[str, str]] | None) -> int:
    """Characters of text in a content."""
    return len(content) if isinstance(content, str) else sum(len(part.get("text", "")) for part in content or ())


def image_count(messages: Sequence[Mapping[str, Any]]) -> int:
    """Images that messages hold."""
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return sum(part["type"] == "image" for content in contents for part in content or ())


def format_messages_for_template(
    template: str, messages: Sequence[dict[str, Any]], image_token: str | None
) -> list[dict[str, Any]]:
    """Convert every content to what ``template`` reads: parts if it looks at their type, else one text.

    In one text an image is the text of its token.
    """
    messages = [format_tool_calls_for_template(template, message) for message in messages]
    if _READS_PARTS.search(template):
        return [message | {"content": _as_parts(message["content"])} for message in messages]
    return [message | {"content": _as_text(message["content"], image_token)} for message in messages]


def _checked_part(part: Any, where: str) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("image", "image_url"):
        return {"type": "image"}
    if kind != "text":
        raise DataError(f"{where}.type: {kind!r} is not supported; use text or image")
    if not isinstance(part.get("text"), str):
        raise DataError(f"{where}.text: expected text, got {type(part.get('text')).__name__}; give a string")
    return {"type": "text", "text": part["text"]}


def _as_parts(content: str | list[dict[str, str]] | None) -> list[dict[str, str]] | None:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _as_text(content: str | list[dict[str, str]] | None, image_token: str | None) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if image_token is None and any(part["type"] == "image" for part in content):
        raise DataError("messages: hold an image, but this model has no image token; use a vision model")
    return "".join(part["text"] if part["type"] == "text" else image_token or "" for part in content)
