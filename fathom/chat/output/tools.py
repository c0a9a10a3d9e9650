"""Incremental parser of tool calls in DeepSeek's formats and Hermes's.

DeepSeek-V3 and R1 write ``<｜tool▁calls▁begin｜>``, then each call between ``<｜tool▁call▁begin｜>`` and
``<｜tool▁call▁end｜>`` as ``function<｜tool▁sep｜>NAME`` with the arguments in a fenced block of JSON; V3.1 writes
``NAME<｜tool▁sep｜>ARGUMENTS``. Qwen2's and other models after Hermes write ``<tool_call>{"name": ..., "arguments":
...}</tool_call>``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from fathom.chat.output.markers import partial_marker_length
from fathom.chat.output.tool_arguments import validate_arguments
from fathom.tokenizer import special

HERMES_BEGIN = "<tool_call>"
HERMES_END = "</tool_call>"
MARKERS = (
    special.TOOL_CALLS_BEGIN,
    special.TOOL_CALLS_END,
    special.TOOL_CALL_BEGIN,
    special.TOOL_CALL_END,
    special.TOOL_SEPARATOR,
    HERMES_BEGIN,
    HERMES_END,
)
_CALL = {special.TOOL_CALL_BEGIN: special.TOOL_CALL_END, HERMES_BEGIN: HERMES_END}
_OPENERS = (special.TOOL_CALLS_BEGIN, *_CALL)
_WITHIN = (special.TOOL_CALLS_END, special.TOOL_CALL_BEGIN)
_FENCED = re.compile(r"([^\n]+)\n```(?:json)?\n(.*?)\n?```\s*", re.DOTALL)
_QUOTE = re.compile(r'\\.|"', re.DOTALL)
_MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call: the tool's name, its arguments as JSON text of an object, and the problems found in them."""

    name: str
    arguments: str
    problems: tuple[str, ...] = ()


class ToolCallParser:
    """Separates tool calls from content in an incremental answer.

    A call is returned when it is complete. Malformed or unfinished calls are returned as content, markers included: an
    answer without a valid call is returned unchanged. White space after a call is dropped. ``ToolCall.problems`` says
    whether ``tools`` (OpenAI's format) have such a tool and its arguments fit the schema; the call itself is never
    changed. The result does not depend on how the text is split into pieces.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._schemas = {name: schema for name, schema in map(_declared, tools) if name is not None}
        self._held = ""
        self._lead: str | None = None  # the section's opening, until its first call shows whether it is one
        self._within = False
        self._any_read = False
        self._trim = False
        self._search = _Search()
        self._out: list[str | ToolCall] = []

    def push(self, text: str) -> list[str | ToolCall]:
        """Add a piece; return the content and the calls it completes, in order."""
        self._held += text
        while self._advanced():
            pass
        return self._taken()

    def flush(self) -> list[str | ToolCall]:
        """End the text: an unfinished call or marker is content."""
        if not self._any_read or self._held.strip() or not self._within:
            self._write((self._lead or "") + self._held)
        self._held, self._lead, self._within = "", None, False
        return self._taken()

    def _taken(self) -> list[str | ToolCall]:
        out, self._out = self._out, []
        return out

    def _advanced(self) -> bool:
        """Parse the next section of the text; return False where more text is needed."""
        openers = (special.TOOL_CALL_BEGIN,) if self._within else tuple(_CALL)
        opener = next((opener for opener in openers if self._held.startswith(opener)), None)
        if opener is not None:
            return self._call(opener)
        return self._section() if self._within else self._content()

    def _content(self) -> bool:
        if self._held.startswith(special.TOOL_CALLS_BEGIN):
            self._lead, self._held = special.TOOL_CALLS_BEGIN, self._held.removeprefix(special.TOOL_CALLS_BEGIN)
            self._within, self._any_read = True, False
            return True
        starts = [at for opener in _OPENERS if (at := self._held.find(opener)) >= 0]
        end = min(starts, default=len(self._held) - partial_marker_length(self._held, _OPENERS))
        self._write(self._held[:end])
        self._held = self._held[end:]
        return bool(starts)

    def _section(self) -> bool:
        """Continue between the calls of a section, where only white space is allowed."""
        rest = self._held.lstrip()
        if any(marker.startswith(rest) and marker != rest for marker in _WITHIN):
            return False
        if rest.startswith(special.TOOL_CALL_BEGIN):
            if not self._any_read:
                self._lead = (self._lead or "") + self._held[: len(self._held) - len(rest)]
            self._held = rest
            return True
        closing = special.TOOL_CALLS_END if rest.startswith(special.TOOL_CALLS_END) else ""
        if not self._any_read:
            self._write((self._lead or "") + self._held[: len(self._held) - len(rest)] + closing)
        self._held = rest.removeprefix(closing) if self._any_read or closing else rest
        self._lead, self._within = None, False
        return True

    def _call(self, opener: str) -> bool:
        end = self._search.end(self._held, len(opener), _CALL[opener])
        if end is None:
            return False
        read = _read(opener, self._held[len(opener) : end - len(_CALL[opener])])
        if read is None:
            self._write((self._lead or "") + self._held[:end])
        else:
            self._out.append(ToolCall(*read, self._problems(*read)))
            self._any_read = self._trim = True
        self._lead, self._held, self._search = ("" if self._within else None), self._held[end:], _Search()
        return True

    def _write(self, text: str) -> None:
        if self._trim:
            text = text.lstrip()
            self._trim = not text
        if text:
            self._out.append(text)

    def _problems(self, name: str, arguments: str) -> tuple[str, ...]:
        if not self._schemas:
            return ()
        if name not in self._schemas:
            return (f"name: unknown tool {name!r}; use one of {', '.join(sorted(self._schemas))}",)
        return tuple(validate_arguments(arguments, self._schemas[name]))


class _Search:
    """Finds the end of an incremental call: the first closing marker outside strings. Resumes where it stopped."""

    def __init__(self) -> None:
        self._from = self._counted = 0
        self._quoted = False

    def end(self, text: str, start: int, closer: str) -> int | None:
        """Return the end of the call that starts at ``start``, or None while it is incomplete."""
        self._from = max(self._from, start)
        while (found := text.find(closer, self._from)) >= 0:
            quotes = _QUOTE.findall(text, max(self._counted, start), found).count('"')
            self._quoted ^= quotes % 2 == 1
            self._from, self._counted = found + len(closer), found
            if not self._quoted:
                return self._from
        self._from = max(self._from, len(text) - len(closer) + 1)
        return None


def _declared(tool: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    function = tool.get("function", tool)
    return function.get("name"), function.get("parameters") or {}


def _read(opener: str, body: str) -> tuple[str, str] | None:
    """Return the name and arguments of a call's text, or None where it is malformed."""
    if opener == HERMES_BEGIN:
        return _read_hermes(body)
    first, separator, rest = body.partition(special.TOOL_SEPARATOR)
    if not separator:
        return None
    fenced = _FENCED.fullmatch(rest) if first.strip() == "function" else None
    name, arguments = (fenced[1], fenced[2]) if fenced else (first, rest)
    name, arguments = name.strip(), arguments.strip()
    return (name, arguments) if _is_name(name) and isinstance(_parsed(arguments), dict) else None


def _read_hermes(body: str) -> tuple[str, str] | None:
    call = _parsed(body)
    if not isinstance(call, dict) or not _is_name(call.get("name")) or not isinstance(call.get("arguments"), dict):
        return None
    arguments = json.dumps(call["arguments"], ensure_ascii=False)
    return call["name"], arguments if _encodes(arguments) else json.dumps(call["arguments"])


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and 0 < len(name) <= _MAX_NAME and name.isprintable() and " " not in name


def _encodes(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
