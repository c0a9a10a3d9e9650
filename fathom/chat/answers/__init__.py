"""Answers as text: stop strings, thinking, tool calls and the thinking budget."""

from __future__ import annotations

from fathom.chat.answers.answer import AnswerParser, Channel, Delta
from fathom.chat.answers.schema import validate_arguments
from fathom.chat.answers.stops import StopStrings
from fathom.chat.answers.thinking import ThinkingSplit
from fathom.chat.answers.tools import ToolCall, ToolCallParser

__all__ = [
    "AnswerParser",
    "Channel",
    "Delta",
    "StopStrings",
    "ThinkingSplit",
    "ToolCall",
    "ToolCallParser",
    "validate_arguments",
]
