"""What a chat template reads, found by rendering short conversations with it.

A template may mention a word in a comment, build a name from pieces or never reach a branch: its source says little,
its output everything. Every answer is kept for the last templates.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fathom.chat.template_process import PROCESS
from fathom.tokenizer import special

_KEPT = 256
_TEXT, _TOOL, _KEY, _VALUE = "Zqtext", "zqtool", "zqkey", "zqvalue"
_DUMPS = (f"'text': '{_TEXT}'", f'"text": "{_TEXT}"', f'"text":"{_TEXT}"')
"""How a list of parts looks where a template writes it as a whole, which none does on purpose."""
_MAX_CHARS = 1_048_576
_USER = {"role": "user", "content": "hello"}
_ID = "call00001"  # of nine letters and digits, as Mistral's templates demand
_RESULT = {"role": "tool", "name": _TOOL, "tool_call_id": _ID, "content": "done"}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": _TOOL,
            "description": "does",
            "parameters": {"type": "object", "properties": {_KEY: {"type": "string", "description": "what"}}},
        },
    }
]
_Conversation = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class ReadCalls:
    """How a template reads tool calls: ``shown`` says whether it writes them at all.

    ``text``: it writes arguments that are JSON text as they are. ``mapping``: it takes arguments that are a mapping; it
    does not where it refuses them and writes text, e.g. joins them with ``+``. ``prefers_mapping``: it takes both, and
    writes a mapping in a format of its own, which is not the JSON text and not Python's ``repr``.
    """

    text: bool
    mapping: bool
    prefers_mapping: bool
    shown: bool


@lru_cache(maxsize=_KEPT)
def reads_parts(template: str, role: str) -> bool:
    """Whether a template writes the text of a content that is a list of parts, in messages of a role.

    Raises:
        DataError: the template meets a limit.
    """
    conversations = _with_content(role, [{"type": "text", "text": _TEXT}])
    for conversation, plain in zip(conversations, _with_content(role, _TEXT), strict=True):
        parted, whole = _render(template, [conversation, plain])
        if parted is not None and _TEXT in parted and (parted == whole or not any(form in parted for form in _DUMPS)):
            return True
    return False


@lru_cache(maxsize=_KEPT)
def reads_text(template: str, role: str) -> bool:
    """Whether a template writes a content that is text, in messages of a role; ``DataError`` as ``reads_parts``."""
    return any(text is not None and _TEXT in text for text in _render(template, _with_content(role, _TEXT)))


@lru_cache(maxsize=_KEPT)
def read_calls(template: str) -> ReadCalls:
    """Find out how a template reads tool calls; ``DataError`` as ``reads_parts``."""
    arguments = {_KEY: _VALUE}
    spelled = json.dumps(arguments)
    text_read = mapping_read = refused = shown = preferred = False
    contents: list[dict[str, str | None]] = [{}, {"content": ""}, {"content": None}]
    for after, content, tools in itertools.product(((), (_RESULT,)), contents, (None, _TOOLS)):
        as_text, as_mapping = _render(
            template, [[_USER, _calling(form, content), *after] for form in (spelled, arguments)], tools
        )
        text_read |= as_text is not None and spelled in as_text
        mapping_read |= as_mapping is not None and _KEY in as_mapping and _VALUE in as_mapping
        refused |= text_read and as_mapping is None
        shown |= any(text is not None and _TOOL in text and _VALUE in text for text in (as_text, as_mapping))
        if text_read or mapping_read:
            preferred = mapping_read and as_text != as_mapping and str(arguments) not in str(as_mapping)
            break
    return ReadCalls(text_read, mapping_read or not refused, preferred, shown)


@lru_cache(maxsize=_KEPT)
def reads_tools(template: str) -> bool:
    """Whether a chat template writes the tools it is given; ``DataError`` as ``reads_parts``."""
    conversations = [[_USER], [{"role": "system", "content": "Be brief."}, _USER]]
    return any(text is not None and _TOOL in text for text in _render(template, conversations, _TOOLS))


def _with_content(role: str, content: Any) -> list[list[Mapping[str, Any]]]:
    """Return conversations in which a message of a role has a content; templates differ in which they take."""
    message: dict[str, Any] = {"role": role, "content": content}
    if role == "user":
        return [[message]]
    if role == "assistant":
        return [[_USER, message], [_USER, message, _USER]]
    if role == "tool":
        result = _RESULT | message
        return [[_USER, _calling({_KEY: _VALUE}, {}), result], [_USER, _calling(f'{{"{_KEY}": 1}}', {}), result]]
    return [[message, _USER], [message], [_USER, message]]


def _calling(arguments: Any, content: Mapping[str, str | None]) -> dict[str, Any]:
    call = {"id": _ID, "type": "function", "function": {"name": _TOOL, "arguments": arguments}}
    return {"role": "assistant", **content, "tool_calls": [call]}


def _render(template: str, conversations: Sequence[_Conversation], tools: Any = None) -> list[str | None]:
    """Render conversations; None stands for one that the template refuses."""
    variables = [
        {
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": False,
            "bos_token": special.BEGIN,
            "eos_token": special.END,
        }
        for messages in conversations
    ]
    renderings = PROCESS.render(template, variables, max_chars=_MAX_CHARS)
    for rendering in renderings:
        if rendering.limit:
            rendering.unwrap("chat template")
    return [rendering.text for rendering in renderings]
