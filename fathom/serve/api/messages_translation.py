"""From a request of /v1/messages to the chat request that answers it."""

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
    JsonSchema,
    Message,
    Part,
    ResponseFormat,
    Thinking,
    Tool,
)
from fathom.serve.schemas.messages import Block, CountTokensRequest, MessagesRequest, Source, Turn

_BILLING = "x-anthropic-billing-header"
"""Claude Code begins its system prompt with a line that differs in every request: no prefix would ever be cached."""
_OWN_NAMES: Mapping[str, str] = {
    "stop": "stop_sequences",
    "response_format.json_schema.schema": "output_config.format.schema",
    "response_format": "output_config.format",
    "tool_choice.function.name": "tool_choice.name",
    "thinking_budget": "thinking.budget_tokens",
}


class MessagesTranslation(Translation):
    """A request of /v1/messages as a chat request.

    Raises:
        ApiError: a block lacks what its type needs, or has a type that cannot be read.
    """

    def __init__(self, body: CountTokensRequest) -> None:
        super().__init__(_OWN_NAMES)
        if system := self._system(body.system):
            self._append(system, "system")
        for first, turns in _runs(body.messages):
            self._turns(first, turns)
        if isinstance(body, MessagesRequest) and body.thread is not None:
            self.ignored.add("thread", note="conversations are not kept here")
        sampling = _sampling(body) if isinstance(body, MessagesRequest) else {}
        self.chat = chat_request(
            messages=self._messages,
            tools=self._tools(body) or None,
            tool_choice=_tool_choice(body),
            parallel_tool_calls=_parallel(body),
            thinking=_thinking(body),
            continue_final_message=self._continues or None,
            **_output(body),
            **sampling,
        )

    @property
    def _continues(self) -> bool:
        """Whether the answer continues the last turn, which is the assistant's beginning."""
        last = self._messages[-1]
        return last.role == "assistant" and not last.tool_calls and bool(last.content or last.reasoning_content)

    def _system(self, given: str | list[Block] | None) -> Message | None:
        blocks = _blocks(given or "")
        texts = [needed(block.text, f"system[{index}].text") for index, block in enumerate(blocks)]
        text = "\n\n".join(text for text in texts if text and not text.startswith(_BILLING))
        return Message(role="system", content=text) if text else None

    def _turns(self, first: int, turns: Sequence[Turn]) -> None:
        """Add the consecutive turns of one role as one."""
        placed = [
            (
                block,
                f"messages[{first + at}]" + (f".content[{index}]" if isinstance(turn.content, list) else ".content"),
            )
            for at, turn in enumerate(turns)
            for index, block in enumerate(_blocks(turn.content))
        ]
        role = turns[0].role
        if role == "assistant":
            self._assistant(placed, f"messages[{first}]")
        elif role == "system":
            text = "\n\n".join(needed(block.text, f"{where}.text") for block, where in placed)
            self._append(Message(role="system", content=text), f"messages[{first}]")
        else:
            self._user(placed, f"messages[{first}]")

    def _user(self, placed: Sequence[tuple[Block, str]], turn: str) -> None:
        """Add the results of tools, each a message, and then the rest with the results' images."""
        shown: list[PlacedPart] = []
        for block, where in placed:
            if block.type != "tool_result":
                shown += [(part, where) for part in self._parts(block, where)]
                continue
            parts = [part for inner, at in _inner(block, where) for part in self._parts(inner, at)]
            shown += [(part, where) for part in parts if part.type != "text"]
            text = "\n\n".join(part.text or "" for part in parts if part.type == "text")
            if block.is_error:
                text = f"Error: {text}"
            call_id = needed(block.tool_use_id, f"{where}.tool_use_id")
            self._append(Message(role="tool", content=text, tool_call_id=call_id), where)
        if shown:
            self._append_user(shown, turn, "source.url")
        elif not any(block.type == "tool_result" for block, _ in placed):
            raise refuse(f"{turn}.content", "holds nothing that can be read", "give a text")

    def _assistant(self, placed: Sequence[tuple[Block, str]], turn: str) -> None:
        said = AssistantTurn()
        for block, where in placed:
            if block.type == "tool_use":
                name = needed(block.name, f"{where}.name")
                said.calls.append(tool_call(needed(block.id, f"{where}.id"), name, block.input or {}))
            elif block.type == "thinking":
                said.reasoning.append(block.thinking or carried(block.signature) or "")
            elif block.type == "text":
                said.texts.append(needed(block.text, f"{where}.text"))
            else:
                self.ignored.add(f"{where}[{block.type[:32]}]")
        self._append(said.message(), turn)

    def _parts(self, block: Block, where: str) -> list[Part]:
        """Return what a block of a user's turn shows."""
        if block.type == "text":
            return [text_part(needed(block.text, f"{where}.text"))]
        if block.type == "image":
            return [image_part(_image_url(block.source, f"{where}.source"))]
        if block.type == "document":
            return self._document(block, where)
        if block.type == "search_result":
            head = "\n".join(text for text in (block.title, block.source) if isinstance(text, str))
            parts = [part for inner, at in _inner(block, where) for part in self._parts(inner, at)]
            return [text_part(head), *parts]
        self.ignored.add(f"{where}[{block.type[:32]}]")
        return []

    def _document(self, block: Block, where: str) -> list[Part]:
        source = block.source
        if not isinstance(source, Source):
            raise refuse(f"{where}.source", "is missing", "give a source of type text")
        head = [text_part(text) for text in (block.title, block.context) if text]
        if source.type == "text":
            return [*head, text_part(needed(source.data, f"{where}.source.data"))]
        if source.type == "content" and source.content is not None:
            inner = [
                part
                for index, each in enumerate(_blocks(source.content))
                for part in self._parts(each, f"{where}.source.content[{index}]")
            ]
            return [*head, *inner]
        kind = source.media_type or source.type
        raise refuse(
            f"{where}.source",
            f"a document of {kind[:64]} cannot be read here",
            'send its text, as {"type": "text", "media_type": "text/plain", "data": ...}',
        )

    def _tools(self, body: CountTokensRequest) -> list[Tool]:
        tools: list[Tool] = []
        for index, tool in enumerate(body.tools or []):
            where = f"tools[{index}]"
            if tool.type not in (None, "custom"):
                self.ignored.add(f"{where}[{tool.type[:32]}]")
                continue
            self.names.add(f"tools[{len(tools)}].function.parameters", f"{where}.input_schema")
            self.names.add(f"tools[{len(tools)}].function", where)
            tools.append(function_tool(where, tool.name, tool.description, tool.input_schema, tool.strict))
        return tools


def _runs(turns: Sequence[Turn]) -> list[tuple[int, list[Turn]]]:
    """Return consecutive turns of one role together, each run with the index of its first turn."""
    runs: list[tuple[int, list[Turn]]] = []
    for index, turn in enumerate(turns):
        if runs and runs[-1][1][0].role == turn.role:
            runs[-1][1].append(turn)
        else:
            runs.append((index, [turn]))
    return runs


def _blocks(content: str | list[Block]) -> list[Block]:
    return [Block(type="text", text=content)] if isinstance(content, str) else content


def _inner(block: Block, where: str) -> list[tuple[Block, str]]:
    """Return the blocks within a block, each with its place."""
    if block.content is None or isinstance(block.content, dict):
        return []
    return [(inner, f"{where}.content[{index}]") for index, inner in enumerate(_blocks(block.content))]


def _image_url(source: Source | str | None, where: str) -> str:
    if isinstance(source, Source) and source.type == "base64":
        kind = needed(source.media_type, f"{where}.media_type")
        return f"data:{kind};base64,{needed(source.data, f'{where}.data')}"
    if isinstance(source, Source) and source.type == "url":
        return needed(source.url, f"{where}.url")
    shown = source.type[:64] if isinstance(source, Source) else "none"
    raise refuse(where, f"an image from {shown!r} cannot be read here", "send it as base64")


def _tool_choice(body: CountTokensRequest) -> Any:
    choice = body.tool_choice
    if choice is None:
        return None
    if choice.type == "tool":
        return named_tool(choice.name)
    return {"auto": "auto", "any": "required", "none": "none"}[choice.type]


def _parallel(body: CountTokensRequest) -> bool | None:
    return False if body.tool_choice is not None and body.tool_choice.disable_parallel_tool_use else None


def _thinking(body: CountTokensRequest) -> Thinking | None:
    if body.thinking is None or body.thinking.type not in ("enabled", "disabled"):
        return None
    return Thinking(type=body.thinking.type, budget_tokens=body.thinking.budget_tokens)


def _output(body: CountTokensRequest) -> dict[str, Any]:
    config = body.output_config
    if config is None:
        return {}
    fields: dict[str, Any] = {"reasoning_effort": config.effort}
    if config.format is not None:
        schema = JsonSchema(schema=config.format.schema_)
        fields["response_format"] = ResponseFormat(type="json_schema", json_schema=schema, pattern=None)
    return fields


def _sampling(body: MessagesRequest) -> dict[str, Any]:
    return {
        "max_tokens": body.max_tokens,
        "stop": body.stop_sequences,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "stream": body.stream,
    }
