"""Answers as text: stop strings, thinking, tool calls and the thinking budget."""

from __future__ import annotations

from fathom.tokenizer.answers.answer import AnswerParser, Channel, Delta
from fathom.tokenizer.answers.schema import validate_arguments
from fathom.tokenizer.answers.stops import StopStrings
from fathom.tokenizer.answers.thinking import ThinkingSplit
from fathom.tokenizer.answers.tools import ToolCall, ToolCallParser

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
