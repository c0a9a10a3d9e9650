"""Tools on offer, and the grammar of an answer that must call one of them."""

from __future__ import annotations

import json
from typing import Any

from fathom.serve.errors import refuse
from fathom.serve.params import at_most
from fathom.serve.schemas.chat import ChatRequest, NamedTool, Tool
from fathom.serve.settings import Limits
from fathom.tokenizer import Tokenizer, special
from fathom.tokenizer.answers.tools import HERMES_BEGIN, HERMES_END

_MARKERS = (
    special.TOOL_CALLS_BEGIN,
    special.TOOL_CALL_BEGIN,
    special.TOOL_SEPARATOR,
    special.TOOL_CALL_END,
    special.TOOL_CALLS_END,
)


def offered(body: ChatRequest, limits: Limits) -> tuple[dict[str, Any], ...]:
    """Return the tools the model is told of: none with ``tool_choice`` none, one where it is named.

    Raises:
        ApiError: too many, two of one name, or the one named is not among them.
    """
    tools = body.tools or []
    at_most("tools", len(tools), limits.tools)
    names = [tool.function.name for tool in tools]
    for index, tool in enumerate(tools):
        if names.index(tool.function.name) != index:
            raise refuse(f"tools[{index}].function.name", f"{tool.function.name!r} is given twice", "rename one")
        schema = json.dumps(tool.function.parameters or {})
        if len(schema) > limits.schema_bytes:
            where = f"tools[{index}].function.parameters"
            raise refuse(where, f"{len(schema)} bytes exceed {limits.schema_bytes}", "give a smaller schema")
    choice = body.tool_choice
    if choice in ("auto", "required") or isinstance(choice, NamedTool):
        if not tools and choice != "auto":
            raise refuse("tool_choice", "asks for a call, but there are no tools", "give tools")
        if isinstance(choice, NamedTool) and choice.function.name not in names:
            named = choice.function.name[:64]
            raise refuse("tool_choice.function.name", f"{named!r} is not among the tools", "name one of them")
    if choice == "none":
        return ()
    return tuple(_plain(tool) for tool in tools)


def forced_call(body: ChatRequest, tokenizer: Tokenizer) -> str | None:
    """Return a Lark grammar of one call of one of the tools that may be called, or None where none must be.

    The form of the call is the vocabulary's: DeepSeek's, or Hermes's where it has those markers.
    """
    choice = body.tool_choice
    if choice != "required" and not isinstance(choice, NamedTool):
        return None
    named = None if choice == "required" else choice.function.name
    tools = [tool for tool in body.tools or [] if named is None or tool.function.name == named]
    rules = [f"call_{index}: {_call(tool, tokenizer)}" for index, tool in enumerate(tools)]
    calls = " | ".join(f"call_{index}" for index in range(len(tools)))
    ids = [tokenizer.special_tokens.get(marker) for marker in _MARKERS]
    if None not in ids:
        return "\n".join([f"start: <[{ids[0]}]> <[{ids[1]}]> ({calls}) <[{ids[3]}]> <[{ids[4]}]>", *rules]) + "\n"
    return "\n".join(
        [f"start: {_literal(tokenizer, HERMES_BEGIN)} ({calls}) {_literal(tokenizer, HERMES_END)}", *rules]
    )


def _call(tool: Tool, tokenizer: Tokenizer) -> str:
    name, schema = tool.function.name, _arguments(tool)
    separator = tokenizer.special_tokens.get(special.TOOL_SEPARATOR)
    if separator is not None and special.TOOL_CALL_BEGIN in tokenizer.special_tokens:
        head, tail = json.dumps(f"{name}\n```json\n"), json.dumps("\n```")
        return f'"function" <[{separator}]> {head} %json {schema} {tail}'
    head = json.dumps(f'\n{{"name": {json.dumps(name)}, "arguments": ')
    return f"{head} %json {schema} {json.dumps('}' + chr(10))}"


def _arguments(tool: Tool) -> str:
    schema = dict(tool.function.parameters or {})
    schema.setdefault("type", "object")
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
    return json.dumps(schema)


def _literal(tokenizer: Tokenizer, text: str) -> str:
    token = tokenizer.special_tokens.get(text)
    return json.dumps(text) if token is None else f"<[{token}]>"


def _plain(tool: Tool) -> dict[str, Any]:
    function = tool.function.model_dump(exclude_none=True)
    function.setdefault("parameters", {"type": "object", "properties": {}})
    return {"type": "function", "function": function}
