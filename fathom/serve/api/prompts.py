"""Convert a request's messages to what chat templates take, with images loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fathom.serve.api.image_fetch import fetch_image
from fathom.serve.api.params import at_most
from fathom.serve.errors import ApiError, refuse
from fathom.serve.schemas.chat import Message, Part
from fathom.serve.settings import ServeSettings


def to_template_messages(messages: Sequence[Message], settings: ServeSettings) -> list[dict[str, Any]]:
    """Return messages as plain mappings. Images are ``data:`` URIs or bytes: a path is never taken from a request.

    Raises:
        ApiError: a message lacks what its role needs, or an image is too large or not allowed.
    """
    at_most("messages", len(messages), settings.limits.messages)
    given = [part for m in messages if isinstance(m.content, list) for part in m.content if part.type == "image_url"]
    at_most("messages", len(given), settings.limits.images)
    return [_plain(message, f"messages[{index}]", settings) for index, message in enumerate(messages)]


def _plain(message: Message, where: str, settings: ServeSettings) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    plain: dict[str, Any] = {"role": role, "content": _content(message, where, settings)}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_calls and role != "assistant":
        raise refuse(f"{where}.tool_calls", f"a message of role {role} calls no tools", "leave it out")
    if message.tool_calls:
        plain["tool_calls"] = [
            {"id": call.id, "type": "function", "function": call.function.model_dump()} for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    thought = message.reasoning_content if message.reasoning_content is not None else message.reasoning
    if thought is not None:
        plain["reasoning_content"] = thought
    return plain


def _content(message: Message, where: str, settings: ServeSettings) -> str | list[dict[str, Any]]:
    if message.content is None:
        if message.role == "assistant" and message.tool_calls:
            return ""
        raise refuse(f"{where}.content", "is missing", "give a text")
    if isinstance(message.content, str):
        return message.content
    return [
        _part(part, f"{where}.content[{index}]", message.role, settings) for index, part in enumerate(message.content)
    ]


def _part(part: Part, where: str, role: str, settings: ServeSettings) -> dict[str, Any]:
    if part.type == "text":
        if part.text is None:
            raise refuse(f"{where}.text", "is missing", "give a text")
        return {"type": "text", "text": part.text}
    if part.image_url is None:
        raise refuse(f"{where}.image_url", "is missing", "give its url")
    if role != "user":
        raise refuse(where, f"a message of role {role} shows no images", "put it into a user's message")
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
