"""Turns of a conversation as data sets write them, converted to OpenAI's messages and what the loss covers.

Read are OpenAI's messages, legacy function calls included, and ShareGPT's ``from`` and ``value``, with the names of
roles that LLaMA-Factory, axolotl and ms-swift know. A turn's ``weight`` (OpenAI), ``train`` or ``train_on_turn``
(axolotl) and ``loss`` (ms-swift) say whether it is learned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fathom.chat.parts import checked_message
from fathom.chat.roles import ROLE_NAMES, ROLES
from fathom.data.row_report import UnusableRow
from fathom.errors import DataError

_CALL_ROLES = ("function_call", "tool_call")
_PAIRS = (("human", "assistant"), ("user", "assistant"), ("input", "output"))
"""Keys of turns that hold what the user and the assistant said: Firefly, MOSS; Capybara."""
_LOSS_FLAGS = ("weight", "train", "train_on_turn", "loss")
_PARTIAL_LOSS = "train_detail"

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Messages in OpenAI's format; ``learn`` says of each whether it is in the loss, None leaving it to its role."""

    messages: tuple[Message, ...]
    learn: tuple[bool | None, ...]

    def __add__(self, other: Dialogue) -> Dialogue:
        return Dialogue(self.messages + other.messages, self.learn + other.learn)

    def unlearned(self) -> Dialogue:
        """Return the same messages, none of which is in the loss."""
        return Dialogue(self.messages, (False,) * len(self.messages))


def text_turn(role: str, text: Any, where: str) -> Dialogue:
    """Return one message of a text; an empty one, or what is no text, raises ``UnusableRow``."""
    if not isinstance(text, str):
        raise UnusableRow(f"{where}: expected text, got {type(text).__name__}; give a string")
    if not text.strip():
        raise UnusableRow(f"{where}: is empty; fill it, or remove the row")
    return Dialogue(({"role": role, "content": text},), (None,))


def read_dialogue(value: Any, where: str, role: str | None = None) -> Dialogue:
    """Return the messages of a column: a list of turns or its JSON text, one turn, or with ``role`` a text.

    Without ``role`` a list of texts is turns of the user and the assistant. So is a table of ``_PAIRS``.

    Raises:
        UnusableRow: there are none, a role is unknown, or a flag of the loss is no flag.
        DataError: a message is malformed.
    """
    turns = _listed_turns(value)
    if isinstance(turns, str) and role is not None:
        return text_turn(role, turns, where)
    if isinstance(turns, Mapping):
        turns = [turns]
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        example = '{"role": "user", "content": "..."}'
        raise UnusableRow(f"has no {where}; give a list of messages such as {example}")
    if role is None and len(turns) > 1 and all(isinstance(turn, str) for turn in turns):  # LIMA
        turns = [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]
    turns = [part for turn in turns for part in _of_pair(turn)]
    messages: list[Message] = []
    learn: list[bool | None] = []
    for index, turn in enumerate(turns):
        place = f"{where}[{index}]"
        message, flag = _turn(turn, place, messages)
        messages.append(message)
        learn.append(flag)
    return Dialogue(tuple(messages), tuple(learn))


def with_system(dialogue: Dialogue, system: Any) -> Dialogue:
    """Put the text of a system column before a conversation that does not begin with a system message."""
    if not isinstance(system, str) or not system.strip():
        return dialogue
    if dialogue.messages and dialogue.messages[0]["role"] in ("system", "developer"):
        return dialogue
    return text_turn("system", system, "system") + dialogue


def read_tools(tools: Any, functions: Any = None) -> tuple[Mapping[str, Any], ...]:
    """Return tools in OpenAI's format: from a list or its JSON text, of tools, bare functions, or texts of them."""
    found = []
    for where, column in (("tools", tools), ("functions", functions)):
        listed = _from_json(column, where) or []
        if isinstance(listed, Mapping):
            listed = [listed]
        if not isinstance(listed, Sequence) or isinstance(listed, str):
            raise UnusableRow(f"{where}: expected a list of objects; give OpenAI's format")
        for item in listed:
            tool = _from_json(item, where)
            if not isinstance(tool, Mapping):
                raise UnusableRow(f"{where}: expected a list of objects; give OpenAI's format")
            bare = "function" not in tool and isinstance(tool.get("name"), str)
            found.append({"type": "function", "function": tool} if bare else tool)
    return tuple(found)


def _of_pair(turn: Any) -> list[Any]:
    """Return the two turns that a table such as Firefly's ``human`` and ``assistant`` holds; any other turn alone."""
    if not isinstance(turn, Mapping) or "role" in turn or "from" in turn:
        return [turn]
    for names in _PAIRS:
        if all(isinstance(turn.get(name), str) for name in names):
            return [{"role": role, "content": turn[name]} for role, name in zip(ROLES[2:4], names, strict=True)]
    return [turn]


def _turn(turn: Any, where: str, before: Sequence[Message]) -> tuple[Message, bool | None]:
    """Return a turn as a message of a known role, checked, and whether it is learned."""
    if not isinstance(turn, Mapping):
        return checked_message(turn, where), None  # raises
    given = {name: value for name, value in turn.items() if value is not None or name == "content"}
    if "from" in given and "role" not in given:
        given["role"] = given.pop("from")
    if "value" in given and given.get("content") is None:
        given["content"] = given.pop("value")
    flag = _flag(given, where)
    message = {name: value for name, value in given.items() if name not in (*_LOSS_FLAGS, _PARTIAL_LOSS)}
    spelled = message.get("role")
    if isinstance(spelled, str):
        message["role"] = ROLE_NAMES.get(spelled.lower(), spelled.lower())
    if "thinking" in message:
        message.setdefault("reasoning_content", message.pop("thinking"))
    if spelled in _CALL_ROLES:
        message["tool_calls"] = _calls(message.pop("content", None), where, before)
    elif "function_call" in message:
        message["tool_calls"] = _calls(message.pop("function_call"), f"{where}.function_call", before)
    elif isinstance(message.get("tool_calls"), str):
        message["tool_calls"] = _parsed(message["tool_calls"], f"{where}.tool_calls")
    if message.get("role") == "tool":
        _complete_result(message, before)
    role = checked_message(message, where)["role"]
    if role not in ROLES:
        names = ", ".join([*ROLES, *ROLE_NAMES])
        raise UnusableRow(f"{where}.role: unknown value {spelled!r}; use one of {names}", "unknown_role")
    return message, flag


def _flag(turn: Mapping[str, Any], where: str) -> bool | None:
    """Return whether a turn's own fields put it into the loss or out of it; None where they leave it to its role."""
    if turn.get(_PARTIAL_LOSS):
        raise UnusableRow(f"{where}.{_PARTIAL_LOSS}: parts of a turn cannot be masked; give train = true or false")
    decided: bool | None = None
    for name in _LOSS_FLAGS:
        value = turn.get(name)
        if value is None:
            continue
        if isinstance(value, str) or value not in (0, 1):
            raise UnusableRow(f"{where}.{name}: {value!r} is neither 0 nor 1; weigh whole conversations by repeat")
        if not value:
            return False
        decided = True if name != "weight" else decided
    return decided


def _calls(value: Any, where: str, before: Sequence[Message]) -> list[dict[str, Any]]:
    """Return OpenAI's tool calls of a legacy call, or of ShareGPT's, which may be several or JSON text."""
    calls = _from_json(value, where)
    calls = [calls] if isinstance(calls, Mapping) else calls
    first = sum(len(message.get("tool_calls") or ()) for message in before) + 1
    made = []
    for number, call in enumerate(calls if isinstance(calls, list) else [None], start=first):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise UnusableRow(f'{where}: is no call; write it as {{"name": "...", "arguments": {{}}}}')
        arguments = function.get("arguments", function.get("parameters", {}))
        made.append(
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {"name": function["name"], "arguments": arguments},
            }
        )
    return made


def _complete_result(message: dict[str, Any], before: Sequence[Message]) -> None:
    """Give the result of a call the id of the first call that has none yet, and a text."""
    if isinstance(message.get("content"), Mapping):
        message["content"] = json.dumps(message["content"], ensure_ascii=False)
    answered = [earlier.get("tool_call_id") for earlier in before]
    called = [call for earlier in before for call in earlier.get("tool_calls") or () if isinstance(call, Mapping)]
    waiting = [call["id"] for call in called if isinstance(call.get("id"), str) and call["id"] not in answered]
    if waiting:
        message.setdefault("tool_call_id", waiting[0])


def _listed_turns(value: Any) -> Any:
    """Return a value, parsed where it is the JSON text of a list of turns; any other text stays text."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        turns = json.loads(value)
    except (ValueError, RecursionError):
        return value
    listed = isinstance(turns, list) and all(isinstance(turn, Mapping) for turn in turns)
    return turns if listed and all("role" in turn or "from" in turn for turn in turns) else value


def _from_json(value: Any, where: str) -> Any:
    """Return a value, parsed where it is a text; an empty text is None."""
    if not isinstance(value, str):
        return value
    return _parsed(value, where) if value.strip() else None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is no JSON ({error}); correct it") from None
