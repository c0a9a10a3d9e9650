"""Prompts that end inside the final assistant message, so that the model continues it.

As transformers' ``continue_final_message``: a mark is put behind the text to continue, the conversation is rendered,
and what follows the mark is cut off, the end token among it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fathom.chat.parts import REASONING_FIELDS
from fathom.errors import DataError
from fathom.tokenizer import special


def check_continuable(messages: Sequence[Mapping[str, Any]]) -> None:
    """Check that the last message can be continued; ``DataError`` says why not."""
    last = messages[-1] if messages else {}
    where = f"messages[{max(len(messages) - 1, 0)}]"
    if last.get("role") != "assistant":
        raise DataError(
            f"{where}.role: {last.get('role')!r} cannot be continued; end with an assistant message, "
            "or leave continue_final_message and prefix out"
        )
    if last.get("tool_calls"):
        raise DataError(f"{where}.tool_calls: a message that calls tools cannot be continued; answer its calls first")


def continued_text(message: Mapping[str, Any]) -> tuple[str, str]:
    """Return which field of a final message is continued, ``content`` or ``reasoning_content``, and its text.

    It is the reasoning where there is reasoning and no content.
    """
    content = message.get("content")
    if isinstance(content, list | tuple):
        content = next((part["text"] for part in reversed(content) if part.get("type") == "text"), "")
    if not content:
        thought = next((message[name] for name in REASONING_FIELDS if message.get(name)), None)
        if isinstance(thought, str):
            return "reasoning_content", thought
    return "content", content or ""


def continues_reasoning(message: Mapping[str, Any]) -> bool:
    """Whether the continuation of a final message starts inside its reasoning."""
    field, text = continued_text(message)
    return field != "content" or (text.lstrip().startswith(special.THINK_BEGIN) and special.THINK_END not in text)


def with_mark(message: Mapping[str, Any], mark: str) -> dict[str, Any]:
    """Return a message with ``mark`` and a space behind the text to continue; a template may trim the space."""
    field, text = continued_text(message)
    marked = f"{text}{mark} "
    if field != "content":
        return {**message, **{name: marked for name in REASONING_FIELDS if message.get(name) == text}}
    content = message.get("content")
    if not isinstance(content, list | tuple):
        return {**message, "content": marked}
    parts = list(content)
    places = [index for index, part in enumerate(parts) if part.get("type") == "text"]
    if places:
        parts[places[-1]] = {**parts[places[-1]], "text": marked}
    else:
        parts.append({"type": "text", "text": marked})
    return {**message, "content": parts}


def with_reasoning_as_content(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message whose started reasoning is content behind an opening tag, for templates that show no other."""
    _, text = continued_text(message)
    shown = {name: value for name, value in message.items() if name not in REASONING_FIELDS}
    return {**shown, "content": f"{special.THINK_BEGIN}\n{text}"}


def cut_at_mark(text: str, mark: str) -> str | None:
    """Return a rendered conversation up to its last mark, or None where the template does not show it."""
    before, found, after = text.rpartition(mark)
    if not found:
        return None
    return before if after.startswith(" ") else before.rstrip()
