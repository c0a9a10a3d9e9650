"""From a request of /v1/responses to the chat request that answers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fathom.serve.api.translation import (
    AssistantTurn,
    PlacedPart,
    Translation,
    chat_request,
    function_tool,
    image_part,
    named_tool,
    needed,
    text_part,
    tool_call,
)
from fathom.serve.errors import refuse
from fathom.serve.response.opaque import carried
from fathom.serve.schemas.chat import (
    ChatCompletionRequest,
    JsonSchema,
    Message,
    ResponseFormat,
    Tool,
)
from fathom.serve.schemas.responses import Content, InputTokensRequest, Item, ResponsesRequest, ResponsesTool

LOGPROBS = "message.output_text.logprobs"
_OWN_NAMES: Mapping[str, str] = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format.json_schema.schema": "text.format.schema",
    "response_format": "text.format",
    "tool_choice.function.name": "tool_choice.name",
}
_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


class ResponsesTranslation(Translation):
    """A request of /v1/responses as a chat request; ``history`` are the items before the request's own.

    Raises:
        ApiError: an item lacks what its type needs, or a part cannot be read.
    """

    def __init__(self, body: InputTokensRequest, history: Sequence[Item], items: Sequence[Item]) -> None:
        super().__init__(_OWN_NAMES)
        self._system = [body.instructions] if body.instructions else []
        self._turn: AssistantTurn | None = None
        self._user: list[PlacedPart] = []
        self._place = "instructions"
        for index, item in enumerate(history):
            self._add(item, f"previous_response_id[{index}]")
        for index, item in enumerate(items):
            self._add(item, "input" if isinstance(body.input, str) else f"input[{index}]")
        self._flush()
        if not self._messages:
            raise refuse("input", "holds nothing that can be read", "give a text or items")
        self.chat = chat_request(
            messages=self._messages,
            tools=self._functions(body) or None,
            tool_choice=_tool_choice(body),
            reasoning_effort=None if body.reasoning is None else body.reasoning.effort,
            chat_template_kwargs=body.chat_template_kwargs,
            response_format=_response_format(body),
            **(_sampling(body) if isinstance(body, ResponsesRequest) else {}),
        )

    @property
    def turns(self) -> int:
        """Count the user's messages."""
        return len(self._starts)

    def without_first_turns(self, turns: int) -> ChatCompletionRequest:
        """Return the chat request without its first ``turns`` turns, each from a message of the user to the next."""
        head = [message for message in self._messages[:1] if message.role == "system"]
        kept = self._messages[self._starts[turns] :]
        return self.chat.model_copy(update={"messages": [*head, *kept]})

    @property
    def _starts(self) -> list[int]:
        return [index for index, message in enumerate(self._messages) if message.role == "user"]

    def _add(self, item: Item, where: str) -> None:
        kind = item.type or "message"
        if kind == "message":
            self._message(item, where)
        elif kind == "reasoning":
            self._assistant(where).reasoning.append(_reasoning(item))
        elif kind == "function_call":
            name = needed(item.name, f"{where}.name")
            call_id = needed(item.call_id, f"{where}.call_id")
            self._assistant(where).calls.append(tool_call(call_id, name, item.arguments or "{}"))
        elif kind == "function_call_output":
            self._output(item, where)
        else:
            self.ignored.add(f"{where}[{kind[:32]}]")

    def _message(self, item: Item, where: str) -> None:
        content = item.content
        if item.role is None:
            raise refuse(f"{where}.role", "is missing", "give user, assistant, system or developer")
        if content is None:
            raise refuse(f"{where}.content", "is missing", "give a text")
        parts = self._parts(content, f"{where}.content")
        if item.role == "assistant":
            self._assistant(where).texts += [part.text or "" for part, _ in parts]
        elif item.role == "user":
            self._close_turn()
            if not self._user:
                self._place = where
            self._user += parts
        else:
            text = "\n\n".join(part.text or "" for part, _ in parts)
            if self._messages or self._turn is not None or self._user:
                self._flush()
                self._append(Message(role="system", content=text), where)
            else:
                self._system.append(text)

    def _output(self, item: Item, where: str) -> None:
        """Add a tool's result; its images are shown with what the user says next."""
        self._close_turn()
        self._open()
        parts = self._parts(item.output or "", f"{where}.output")
        text = "\n\n".join(part.text or "" for part, _ in parts if part.type == "text")
        call_id = needed(item.call_id, f"{where}.call_id")
        self._append(Message(role="tool", content=text, tool_call_id=call_id), where)
        self._place = self._place if self._user else where
        self._user += [(part, at) for part, at in parts if part.type != "text"]

    def _parts(self, content: str | list[Content], where: str) -> list[PlacedPart]:
        if isinstance(content, str):
            return [(text_part(content), where)]
        parts: list[PlacedPart] = []
        for index, each in enumerate(content):
            place = f"{where}[{index}]"
            if each.type in _TEXTS:
                parts.append((text_part(needed(each.text, f"{place}.text")), place))
            elif each.type == "refusal":
                parts.append((text_part(needed(each.refusal, f"{place}.refusal")), place))
            elif each.type == "input_image":
                parts.append((image_part(needed(each.image_url, f"{place}.image_url")), place))
            else:
                raise refuse(f"{place}.type", f"{each.type[:64]!r} cannot be read here", "send its text as input_text")
        return parts

    def _assistant(self, where: str) -> AssistantTurn:
        """Return the assistant's turn that is open, or a new one."""
        if self._turn is None:
            self._flush()
            self._turn, self._place = AssistantTurn(), where
        return self._turn

    def _close_turn(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            self._open()
            self._append(turn.message(), self._place)

    def _flush(self) -> None:
        """Add what the assistant or the user has said since the last message."""
        self._close_turn()
        self._open()
        user, self._user = self._user, []
        if user:
            self._append_user(user, self._place, "image_url")

    def _open(self) -> None:
        """Add the instructions before the first message."""
        if self._system:
            text, self._system = "\n\n".join(self._system), []
            self._append(Message(role="system", content=text), "instructions")

    def _functions(self, body: InputTokensRequest) -> list[Tool]:
        tools: list[Tool] = []
        allowed = _allowed(body)
        for index, tool in enumerate(body.tools or []):
            where = f"tools[{index}]"
            if tool.type != "function":
                self.ignored.add(f"{where}[{tool.type[:32]}]")
            elif allowed is None or tool.name in allowed:
                self.names.add(f"tools[{len(tools)}].function", where)
                tools.append(function_tool(where, tool.name, tool.description, tool.parameters, tool.strict))
        return tools


def _reasoning(item: Item) -> str:
    """Return an item's reasoning: its text, what it carries unseen, or its summary."""
    content = [Content(type="text", text=item.content)] if isinstance(item.content, str) else item.content or []
    text = "".join([each.text or "" for each in content])
    summary = "\n\n".join([each.text or "" for each in item.summary or []])
    return text or carried(item.encrypted_content) or summary


def _allowed(body: InputTokensRequest) -> frozenset[str] | None:
    """Return the names of the tools that may be called, or None: all."""
    choice = body.tool_choice
    if choice is None or isinstance(choice, str) or choice.type != "allowed_tools":
        return None
    functions = [tool.name for tool in body.tools or [] if tool.type == "function"]
    named = [tool.name for tool in choice.tools or [] if tool.type == "function"]
    for index, name in enumerate(named):
        if name not in functions:
            raise refuse(f"tool_choice.tools[{index}].name", f"{name!r} is not among the tools", "name one of them")
    return frozenset(name for name in named if name is not None)


def _tool_choice(body: InputTokensRequest) -> Any:
    choice = body.tool_choice
    if choice is None or isinstance(choice, str):
        return choice
    if choice.type == "allowed_tools":
        return choice.mode or "auto"
    if choice.type == "function":
        return named_tool(choice.name)
    raise refuse("tool_choice.type", f"{choice.type[:64]!r} runs on other servers", "name a tool of type function")


def _response_format(body: InputTokensRequest) -> ResponseFormat | None:
    wanted = None if body.text is None else body.text.format
    if wanted is None:
        return None
    schema = None
    if wanted.type == "json_schema":
        schema = JsonSchema(name=wanted.name, schema=wanted.schema_, strict=wanted.strict)
    return ResponseFormat(type=wanted.type, json_schema=schema, pattern=None)


def wants_logprobs(body: ResponsesRequest) -> bool:
    """Whether log-probabilities of the text's tokens are asked for."""
    return bool(body.top_logprobs) or LOGPROBS in (body.include or [])


def _sampling(body: ResponsesRequest) -> dict[str, Any]:
    names = (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "seed",
        "cache_salt",
        "parallel_tool_calls",
    )
    return {
        "max_tokens": body.max_output_tokens,
        "stream": body.stream,
        "logprobs": wants_logprobs(body) or None,
        "top_logprobs": (body.top_logprobs or 0) if wants_logprobs(body) else None,
        **{name: getattr(body, name) for name in names},
    }


def echoed_tools(tools: Sequence[ResponsesTool]) -> list[dict[str, Any]]:
    """Return the tools that the model may call, as a response names them."""
    return [
        {"description": None, "parameters": None, "strict": None} | tool.model_dump(exclude_none=True)
        for tool in tools
        if tool.type == "function"
    ]
