"""Conversations with normalized messages, encoded by a chat template as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fathom.chat import encode_chat
from fathom.chat.output.hermes import fit_messages_to_template
from fathom.chat.parts import REASONING_FIELDS, arguments_as_mapping, checked_message, joined_parts
from fathom.errors import DataError
from fathom.tokenizer import Tokenizer, special

KeepThinking = Literal["keep", "drop"]
Messages = Sequence[Mapping[str, Any]]
REASONING = "reasoning_content"


def normalize_messages(messages: Messages, thinking: KeepThinking) -> list[dict[str, Any]]:
    """Return messages whose answers hold their reasoning under ``reasoning_content``, or nowhere.

    It may stand under ``thinking`` or ``reasoning`` as well, or in the content before a closing think tag. White space
    at its ends, and before the answer that follows it, goes.

    Raises:
        DataError: a message has no role or content, its calls are none, or its reasoning is no text.
    """
    return [_uniform(message, f"messages[{index}]", thinking) for index, message in enumerate(messages)]


def _uniform(message: Mapping[str, Any], where: str, thinking: KeepThinking) -> dict[str, Any]:
    checked_message(message, where)
    changed = {key: value for key, value in message.items() if key not in REASONING_FIELDS}
    if message["role"] != "assistant":
        return changed
    reasoning = next((message[name] for name in REASONING_FIELDS if message.get(name)), "")
    if not isinstance(reasoning, str):
        raise DataError(f"{where}.{REASONING}: expected text, got {type(reasoning).__name__}; give a string")
    content = message.get("content")
    if isinstance(content, str) and special.THINK_END in content:
        spelled, _, content = content.rpartition(special.THINK_END)
        reasoning = reasoning or spelled.lstrip().removeprefix(special.THINK_BEGIN)
        changed["content"] = content.lstrip()
    kept = reasoning.strip() if thinking == "keep" else ""
    return changed | ({REASONING: kept} if kept else {})


def said(messages: Messages) -> list[Any]:
    """Return what messages say: equal for conversations that differ only in how data sets write them.

    Roles, texts, reasoning and calls count; how arguments and parts are written, ids and other fields do not.
    """
    try:
        return [_said(message) for message in normalize_messages(messages, "keep")]
    except DataError:  # no template takes them, so they are compared as they are written
        return list(messages)


def _said(message: Mapping[str, Any]) -> list[Any]:
    role, content = message["role"], message.get("content") or ""
    if not isinstance(content, str) and all(part.get("type") == "text" for part in content):
        content = joined_parts(content, None)
    if role == "tool" and isinstance(content, str):
        content = arguments_as_mapping(content)
    elif isinstance(content, str):
        content = content.strip()
    calls = [call["function"] for call in message.get("tool_calls") or ()] if role == "assistant" else []
    asked = [[call["name"], arguments_as_mapping(call.get("arguments", ""))] for call in calls]
    return ["system" if role == "developer" else role, content, message.get(REASONING, ""), asked]


@dataclass(frozen=True, slots=True)
class TemplatedConversation:
    """A conversation as its tokenizer's chat template takes it, tools and their results included."""

    tokenizer: Tokenizer
    template: str
    messages: tuple[Mapping[str, Any], ...]
    variables: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: KeepThinking = "keep",
        template: str | None = None,
    ) -> TemplatedConversation:
        """Fit a conversation to a template, the tokenizer's own by default.

        Raises:
            DataError: a message is malformed.
        """
        chosen = tokenizer.choose_template(tools=bool(tools)) if template is None else template
        given = normalize_messages(messages, thinking)
        if "developer" not in chosen:
            given = [m | {"role": "system"} if m["role"] == "developer" else m for m in given]
        fitted = [dict(message) for message in fit_messages_to_template(chosen, given, tools)]
        for shown, message in zip(reversed(fitted), reversed(given), strict=False):  # tools may stand in one more
            shown |= {REASONING: message[REASONING]} if REASONING in message else {}
        variables: dict[str, Any] = {"tools": list(tools)} if tools else {}
        variables |= {"keep_thinking": True} if thinking == "keep" else {}
        return cls(tokenizer, chosen, tuple(fitted), variables)

    def ids(self, messages: Messages, *, prompt: bool = False) -> list[int]:
        """Return the ids of messages; as a ``prompt``, up to where the model continues."""
        return encode_chat(self.tokenizer, messages, self.template, add_generation_prompt=prompt, **self.variables)

    def until(self, end: int, *, prompt: bool = False) -> list[int]:
        """Return the ids of the first ``end`` messages."""
        return self.ids(self.messages[:end], prompt=prompt)

    def hides_reasoning(self, index: int) -> bool:
        """Whether an answer that has reasoning looks, at the end of its conversation, as if it had none."""
        message = self.messages[index]
        if REASONING not in message:
            return False
        bare = {key: value for key, value in message.items() if key != REASONING}
        return self.ids([*self.messages[:index], bare]) == self.until(index + 1)
