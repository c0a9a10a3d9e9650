"""What the translations of other interfaces' requests to chat requests share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from fathom.errors import FathomError
from fathom.serve.errors import ApiError, as_api_error, refuse
from fathom.serve.schemas.chat import (
    Call,
    CalledFunction,
    ChatCompletionRequest,
    Function,
    ImageUrl,
    Message,
    NamedFunction,
    NamedTool,
    Part,
    Tool,
)
from fathom.serve.schemas.ignored import IgnoredFields

T = TypeVar("T")
PlacedPart = tuple[Part, str]
"""A part of a user's message, and the client's field that it comes from."""
_FIELD = re.compile(r"[A-Za-z_][\w.\[\]]*")
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")


class FieldNames:
    """The names that a route's own fields have in the chat request that it is translated to.

    Errors of the chat request name its fields; ``restored`` names the client's.
    """

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        self._names = dict(names or {})

    def add(self, chat: str, own: str) -> None:
        """Add the route's name of a chat request's field, and of all within it."""
        self._names[chat] = own

    def run(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns; its errors name the route's own fields.

        Raises:
            ApiError: what ``work`` raises.
        """
        try:
            return work()
        except FathomError as error:
            raise self.restored(as_api_error(error, retry_after=1)) from None

    def restored(self, error: ApiError) -> ApiError:
        """Return an error with the field it starts with named as the route names it."""
        start = _FIELD.match(error.message)
        if start is None:
            return error
        own = self._own(start.group())
        return ApiError(
            error.status,
            own + error.message[start.end() :],
            param=None if error.param is None else self._own(error.param),
            code=error.code,
            retry_after=error.retry_after,
        )

    def _own(self, field: str) -> str:
        within = [name for name in self._names if field == name or field.startswith((f"{name}.", f"{name}["))]
        if not within:
            return field
        longest = max(within, key=len)
        return self._names[longest] + field[len(longest) :]


class Translation:
    """Base of what translates another interface's request to a chat request.

    ``ignored`` names what was left out, such as tools that run on other servers; ``names`` restores the names of the
    client's fields in errors. ``chat`` is the chat request.
    """

    chat: ChatCompletionRequest

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = FieldNames(names)
        self.ignored = IgnoredFields()
        self._messages: list[Message] = []

    def _append(self, message: Message, where: str) -> None:
        """Add a message, which the client gave at ``where``."""
        self.names.add(f"messages[{len(self._messages)}]", where)
        self._messages.append(message)

    def _append_user(self, placed: Sequence[PlacedPart], where: str, url: str) -> None:
        """Add a user's message; ``url`` is the client's field that holds an image's address."""
        for index, (part, place) in enumerate(placed):
            if part.type != "text":
                field = f"messages[{len(self._messages)}].content[{index}].image_url.url"
                self.names.add(field, f"{place}.{url}")
        self._append(Message(role="user", content=joined([part for part, _ in placed])), where)


def needed(value: str | None, where: str) -> str:
    """Return a text that a field must have; ``ApiError`` where it is missing."""
    if value is None:
        raise refuse(where, "is missing", "give a text")
    return value


def chat_request(**fields: Any) -> ChatCompletionRequest:
    """Return a chat request; its fields are those of the client, so errors are named by ``FieldNames``.

    Raises:
        ApiError: a field has a value that no chat request may have.
    """
    try:
        return ChatCompletionRequest(**fields)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in fault["loc"]).lstrip(".")
        raise refuse(where or "body", fault["msg"][:1].lower() + fault["msg"][1:], "correct it") from None


def function_tool(
    where: str, name: str | None, description: str | None, parameters: Mapping[str, Any] | None, strict: bool | None
) -> Tool:
    """Return a tool of the chat request.

    Raises:
        ApiError: it has no name, or one that no tool may have.
    """
    if name is None or not _TOOL_NAME.fullmatch(name):
        problem = "is missing" if name is None else f"{name[:80]!r} is no name of a tool"
        raise refuse(f"{where}.name", problem, "give 1 to 128 letters, digits, underscores, dots or hyphens")
    schema = None if parameters is None else dict(parameters)
    function = Function(name=name, description=description, parameters=schema, strict=strict)
    return Tool(type="function", function=function)


def named_tool(name: str | None) -> NamedTool:
    """Return the choice of one tool, which ``tool_choice.name`` names."""
    return NamedTool(type="function", function=NamedFunction(name=needed(name, "tool_choice.name")))


def tool_call(call_id: str, name: str, arguments: str | Mapping[str, Any]) -> Call:
    """Return an earlier call of a tool."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return Call(id=call_id, type="function", function=CalledFunction(name=name, arguments=text))


class AssistantTurn:
    """Collects the text, reasoning and calls of one assistant's message."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[Call] = []

    def message(self) -> Message:
        """Return the message."""
        return Message(
            role="assistant",
            content="".join(self.texts),
            tool_calls=self.calls or None,
            reasoning_content="\n\n".join(self.reasoning) or None,
        )


def text_part(text: str) -> Part:
    """Return a part of text."""
    return Part(type="text", text=text)


def image_part(url: str) -> Part:
    """Return an image by its address or ``data:`` URI."""
    return Part(type="image_url", image_url=ImageUrl(url=url))


def joined(parts: list[Part]) -> str | list[Part]:
    """Return parts as one text with empty lines between them, or as they are where one is an image."""
    if any(part.type != "text" for part in parts):
        return parts
    return "\n\n".join([part.text or "" for part in parts])
