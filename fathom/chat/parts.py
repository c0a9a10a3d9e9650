"""Messages with text and image parts or tool calls: checked, and converted to what a chat template reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fathom.errors import DataError

Arguments = str | Mapping[str, Any]
"""Arguments of a tool call: JSON text, as OpenAI's API has them, or a mapping, as transformers' templates read them."""
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's reasoning; templates read the first or the second."""


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


def as_template_message(message: Mapping[str, Any], *, keep_none: bool = False) -> dict[str, Any]:
    """Return a checked message as transformers hands it to a template.

    Fields that are None are left out, and reasoning stands under both names that templates read.
    """
    given = {key: value for key, value in message.items() if value is not None or keep_none}
    reasoning = next((given[name] for name in REASONING_FIELDS if given.get(name) is not None), None)
    return given if reasoning is None else {"thinking": reasoning, **given, "reasoning_content": reasoning}


def convert_arguments(message: dict[str, Any], convert: Callable[[Arguments], Any]) -> dict[str, Any]:
    """Return a message with the arguments of its calls converted."""
    calls = message.get("tool_calls")
    if message["role"] != "assistant" or not calls:
        return message
    converted = [
        call | {"function": {**call["function"], "arguments": convert(call["function"]["arguments"])}} for call in calls
    ]
    return message | {"tool_calls": converted}


def arguments_as_mapping(arguments: Arguments) -> Any:
    """Return arguments as a mapping, an empty one for no text; JSON text that is no object stays as it is."""
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return arguments  # a model may have written broken JSON, which is passed on unchanged
    return value if isinstance(value, dict) else arguments


def arguments_as_json(arguments: Arguments) -> str:
    """Return arguments as JSON text."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def text_length(content: str | Sequence[Mapping[str, str]] | None) -> int:
    """Characters of text in a content."""
    return len(content) if isinstance(content, str) else sum(len(part.get("text", "")) for part in content or ())


def image_count(messages: Sequence[Mapping[str, Any]]) -> int:
    """Images that messages hold."""
    contents = [message.get("content") for message in messages]
    return sum(part["type"] == "image" for content in contents if isinstance(content, list) for part in content)


def _checked_part(part: Any, where: str) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("image", "image_url"):
        return {"type": "image"}
    if kind != "text":
        raise DataError(f"{where}.type: {kind!r} is not supported; use text or image")
    if not isinstance(part.get("text"), str):
        raise DataError(f"{where}.text: expected text, got {type(part.get('text')).__name__}; give a string")
    return {"type": "text", "text": part["text"]}


def joined_parts(content: str | list[dict[str, str]], image_token: str | None) -> str:
    """Return a content as one text, in which an image is its token.

    Raises:
        DataError: there is an image, and no token for it.
    """
    if isinstance(content, str):
        return content
    if image_token is None and any(part["type"] == "image" for part in content):
        raise DataError("messages: hold an image, but this model has no image token; use a vision model")
    return "".join(part["text"] if part["type"] == "text" else image_token or "" for part in content)
