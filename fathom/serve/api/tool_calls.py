"""Tools of a request, and the constraint that forces a tool call.

Z words of 32 tokens each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from fathom.chat.enforceable_schema import enforceable
from fathom.chat.output.bitmask import allow
from fathom.chat.output.budget import Constraint
from fathom.chat.output.either import Either
from fathom.chat.output.tools import HERMES_BEGIN, HERMES_END
from fathom.chat.template_probe import reads_tools
from fathom.errors import DataError
from fathom.serve.api.params import at_most
from fathom.serve.errors import refuse
from fathom.serve.schemas.chat import AllowedToolsChoice, ChatCompletionRequest, NamedTool, Tool
from fathom.serve.settings import Limits
from fathom.tokenizer import special

if TYPE_CHECKING:
    from torch import Tensor

    from fathom.inference.language_model import LanguageModel

_DEEPSEEK_BEGIN = f"{special.TOOL_CALLS_BEGIN}{special.TOOL_CALL_BEGIN}function{special.TOOL_SEPARATOR}"
_DEEPSEEK_END = f"{special.TOOL_CALL_END}{special.TOOL_CALLS_END}"
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def available_tools(body: ChatCompletionRequest, limits: Limits) -> tuple[dict[str, Any], ...]:
    """Return the tools that go into the prompt: all, those that are allowed, or none with ``tool_choice`` none.

    Raises:
        ApiError: too many tools, two of one name, or a ``tool_choice`` that is not among them.
    """
    at_most("tools", len(body.tools or ()), limits.tools)
    names: set[str] = set()
    for index, tool in enumerate(body.tools or ()):
        if not isinstance(tool, Tool):
            continue
        if tool.function.name in names:
            raise refuse(f"tools[{index}].function.name", f"{tool.function.name!r} is given twice", "rename one")
        names.add(tool.function.name)
        size = len(json.dumps(tool.function.parameters or {}))
        if size > limits.schema_bytes:
            where = f"tools[{index}].function.parameters"
            raise refuse(where, f"{size} bytes exceed {limits.schema_bytes}", "give a smaller schema")
    for where, name in _named(body.tool_choice):
        if names and name not in names:
            raise refuse(where, f"{name[:64]!r} is not among the tools", "name one of them")
    if forces_call(body) and not names:
        raise refuse("tool_choice", "forces a call, but there are no tools", "give tools")
    allowed = {name for _, name in _named(body.tool_choice)} if _allows_some(body) else names
    if body.tool_choice == "none":
        return ()
    return tuple(_plain(tool) for tool in body.function_tools if tool.function.name in allowed)


def forces_call(body: ChatCompletionRequest) -> bool:
    """Whether the answer must be a call."""
    choice = body.tool_choice
    if isinstance(choice, AllowedToolsChoice):
        return choice.allowed_tools.mode == "required"
    return isinstance(choice, NamedTool) or choice in ("required", "any")


def answer_constraint(
    body: ChatCompletionRequest, model: LanguageModel, content: Constraint | None
) -> Constraint | None:
    """Return the constraint of an answer: a tool call, ``content`` in its format, or either.

    A call comes alone where ``tool_choice`` forces it. Where it does not, and the format is constrained, the model
    chooses by the first token: the call of a tool, or content in the format.

    Raises:
        DataError: the parameters' schema has no grammar.
    """
    if forces_call(body):
        return _call_constraint(body, model)
    if content is None or body.tool_choice == "none" or body.continues or not body.function_tools:
        return content
    return Either(content, _call_constraint(body, model))


def _call_constraint(body: ChatCompletionRequest, model: LanguageModel) -> ToolCallConstraint:
    """Return the constraint that makes an answer the call of a tool that may be called.

    The call has DeepSeek's format where the template shows tools and the vocabulary has its markers, else Hermes's.
    """
    named = {name for _, name in _named(body.tool_choice)}
    tools = [tool for tool in body.function_tools if not named or tool.function.name in named]
    tokenizer = model.tokenizer
    if special.TOOL_SEPARATOR in tokenizer.special_tokens and reads_tools(tokenizer.choose_template(tools=True)):
        before, after, rules = _DEEPSEEK_BEGIN, _DEEPSEEK_END, [_deepseek_rule(tool) for tool in tools]
    else:
        before, after, rules = f"{HERMES_BEGIN}\n", f"\n{HERMES_END}", [_hermes_rule(tool) for tool in tools]
    return ToolCallConstraint(
        tokenizer.encode(before, allow_special=True, continues=True),
        model.grammars.lark(f"start: {' | '.join(rules)}\n"),
        tokenizer.encode(after, allow_special=True, continues=True),
        sorted(model.eos_ids) or [tokenizer.eos_id],
    )


def _allows_some(body: ChatCompletionRequest) -> bool:
    return isinstance(body.tool_choice, AllowedToolsChoice)


def _named(choice: str | NamedTool | AllowedToolsChoice | None) -> list[tuple[str, str]]:
    """Return the fields of a choice that name tools, and the names."""
    if isinstance(choice, NamedTool):
        return [("tool_choice.function.name", choice.function.name)]
    if isinstance(choice, AllowedToolsChoice):
        where = "tool_choice.allowed_tools.tools"
        return [
            (f"{where}[{index}].function.name", tool.function.name)
            for index, tool in enumerate(choice.allowed_tools.tools)
        ]
    return []


class ToolCallConstraint:
    """Forces opening markers, a text of a grammar, closing markers and the end; an engine's ``TokenConstraint``.

    No text of the grammar may be a prefix of another.
    """

    def __init__(self, before: Sequence[int], inner: Constraint, after: Sequence[int], ends: Sequence[int]) -> None:
        self._before, self._after, self._ends = tuple(before), tuple(after), tuple(ends)
        self._inner = inner

    def fill_bitmask(self, bitmask_Z: Tensor) -> bool:
        """Write the mask of the current part."""
        allowed = self._forced()
        if allowed is None:
            return self._inner.fill_bitmask(bitmask_Z)
        bitmask_Z[:] = 0
        for token_id in allowed:
            allow(bitmask_Z, token_id)
        return True

    def accept(self, token_id: int) -> None:
        """Advance by the sampled token; ``DataError`` if it was not allowed."""
        allowed = self._forced()
        if allowed is None:
            self._inner.accept(token_id)
        elif token_id not in allowed:
            raise DataError(f"token {token_id}: no tool call has it here; sample what fill_bitmask allows")
        elif self._before:
            self._before = self._before[1:]
        else:
            self._after = self._after[1:]

    @property
    def finished(self) -> bool:
        """Whether only an end token is allowed."""
        return not self._before and self._inner.finished and not self._after

    def copy(self) -> Self:
        """Return an independent copy in the same state."""
        return type(self)(self._before, self._inner.copy(), self._after, self._ends)

    def _forced(self) -> tuple[int, ...] | None:
        """The ids that are allowed now, or None where the grammar decides."""
        if self._before:
            return self._before[:1]
        if not self._inner.finished:
            return None
        return self._after[:1] or self._ends


def _deepseek_rule(tool: Tool) -> str:
    head, tail = f"{tool.function.name}\n```json\n", "\n```"
    return f"{_literal(head)} %json {_arguments(tool)} {_literal(tail)}"


def _hermes_rule(tool: Tool) -> str:
    head = f'{{"name": {json.dumps(tool.function.name)}, "arguments": '
    return f"{_literal(head)} %json {_arguments(tool)} {_literal('}')}"


def _literal(text: str) -> str:
    return json.dumps(text)


def _arguments(tool: Tool) -> str:
    """The parameters' schema, without additional properties unless it allows them, and with compact white space.

    Where the tool is not strict, what cannot be enforced is left to the check of the arguments.
    """
    where = f"tools.{tool.function.name}.parameters"
    given = enforceable(tool.function.parameters or {}, where, lenient=tool.function.strict is not True)
    schema = {"type": "object", **given, "x-guidance": _COMPACT}
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
    return json.dumps(schema)


def _plain(tool: Tool) -> dict[str, Any]:
    function = tool.function.model_dump(exclude_none=True)
    function.setdefault("parameters", {"type": "object", "properties": {}})
    return {"type": "function", "function": function}
