"""Parsing of generated text: stop strings, reasoning, tool calls; and the thinking budget."""

from __future__ import annotations

from fathom.chat.output.answer import Channel, Delta, OutputParser
from fathom.chat.output.stop_checker import StopStringChecker
from fathom.chat.output.stops import StopStrings
from fathom.chat.output.thinking import ReasoningParser
from fathom.chat.output.tool_arguments import validate_arguments
from fathom.chat.output.tools import ToolCall, ToolCallParser

__all__ = [
    "Channel",
    "Delta",
    "OutputParser",
    "ReasoningParser",
    "StopStringChecker",
    "StopStrings",
    "ToolCall",
    "ToolCallParser",
    "validate_arguments",
]
