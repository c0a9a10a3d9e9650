"""Convert a request's messages to what chat templates take, with images loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fathom.serve.api.image_fetch import fetch_image
from fathom.serve.api.params import at_most
from fathom.serve.errors import ApiError, refuse
from fathom.serve.schemas.chat import CalledFunction, Message, Part
from fathom.serve.settings import ServeSettings

_TEXTS: Mapping[str, str] = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Types of parts that are text, and the field that holds it."""
_IMAGES = ("image_url", "input_image")
_EMPTY_WITHOUT_CONTENT = ("assistant", "tool", "function")


def to_template_messages(messages: Sequence[Message], settings: ServeSettings) -> list[dict[str, Any]]:
    """Return messages as plain mappings. Images are ``data:`` URIs or bytes: a path is never taken from a request.

    Raises:
        ApiError: a message lacks what its role needs, or an image is too large or not allowed.
    """
    at_most("messages", len(messages), settings.limits.messages)
    given = [part for m in messages if isinstance(m.content, list) for part in m.content if part.type in _IMAGES]
    at_most("messages", len(given), settings.limits.images)
    for index, message in enumerate(messages):
        if (message.prefix or message.partial) and (index < len(messages) - 1 or message.role != "assistant"):
            name = "prefix" if message.prefix else "partial"
            raise refuse(
                f"messages[{index}].{name}",
                "is set on a message that cannot be continued",
                "set it on the last message only, an assistant's",
            )
    return [_plain(message, f"messages[{index}]", settings) for index, message in enumerate(messages)]


def _plain(message: Message, where: str, settings: ServeSettings) -> dict[str, Any]:
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    plain: dict[str, Any] = {"role": role, "content": _content(message, where, settings)}
    if message.name is not None:
        plain["name"] = message.name
    for field, given in (("tool_calls", message.tool_calls), ("function_call", message.function_call)):
        if given and role != "assistant":
            raise refuse(f"{where}.{field}", f"a message of role {message.role} calls no tools", "leave it out")
    calls = [_call(call.id, call.function) for call in message.tool_calls or ()]
    if message.function_call is not None and not calls:
        calls = [_call(_legacy_id(message.function_call.name), message.function_call)]
    if calls:
        plain["tool_calls"] = calls
    if message.role == "function" and message.tool_call_id is None:
        plain["tool_call_id"] = _legacy_id(message.name or "")
    elif message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    thought = message.reasoning_content if message.reasoning_content is not None else message.reasoning
    if thought is not None:
        plain["reasoning_content"] = thought
    return plain


def _call(call_id: str | None, function: CalledFunction) -> dict[str, Any]:
    called = {"name": function.name, "arguments": function.arguments or "{}"}
    return {"id": call_id or _legacy_id(function.name), "type": "function", "function": called}


def _legacy_id(name: str) -> str:
    """Calls of OpenAI's former interface have no id; one call and its result, which names the function, share this."""
    return f"call_{name}"


def _content(message: Message, where: str, settings: ServeSettings) -> str | list[dict[str, Any]]:
    if message.content is None:
        if message.role in _EMPTY_WITHOUT_CONTENT:
            return message.refusal or ""
        raise refuse(f"{where}.content", "is missing", "give a text")
    if isinstance(message.content, str):
        return message.content
    if not message.content:
        return ""
    return [
        _part(part, f"{where}.content[{index}]", message.role, settings) for index, part in enumerate(message.content)
    ]


def _part(part: Part, where: str, role: str, settings: ServeSettings) -> dict[str, Any]:
    if field := _TEXTS.get(part.type):
        text = part.text if field == "text" else part.refusal
        if text is None:
            raise refuse(f"{where}.{field}", "is missing", "give a text")
        return {"type": "text", "text": text}
    if part.type not in _IMAGES:
        shown = part.type[:40]
        raise refuse(f"{where}.type", f"{shown!r} cannot be read by this server", "send text and image_url parts")
    if part.image_url is None:
        raise refuse(f"{where}.image_url", "is missing", "give its url")
    if role != "user":
        raise refuse(where, f"a message of role {role} shows no images", "put it into a user's message")
    if isinstance(part.image_url, str):
        return {"type": "image", "image": _image(part.image_url, f"{where}.image_url", settings)}
    return {"type": "image", "image": _image(part.image_url.url, f"{where}.image_url.url", settings)}


def _image(url: str, where: str, settings: ServeSettings) -> str | bytes:
    most = settings.limits.image_bytes
    if url.startswith("data:"):
        if len(url) * 3 // 4 > most + 256:
            raise ApiError(413, f"{where}: exceeds {most} bytes; give a smaller image", param=where)
        return url
    if not settings.image_hosts:
        raise refuse(
            where,
            f"{url[:60]!r} is not a data: URI",
            "send the image as data:image/png;base64,..., or start the server with --allow-image-host",
        )
    return fetch_image(url, where, settings.image_hosts, max_bytes=most)
