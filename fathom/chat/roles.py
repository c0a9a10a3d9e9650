"""Roles of messages: OpenAI's, and what others call them."""

from __future__ import annotations

from types import MappingProxyType

ROLES = ("system", "developer", "user", "assistant", "tool")
ROLE_NAMES = MappingProxyType(
    {
        "human": "user",
        "gpt": "assistant",
        "chatgpt": "assistant",
        "bing": "assistant",
        "bard": "assistant",
        "model": "assistant",
        "function_call": "assistant",
        "tool_call": "assistant",
        "function": "tool",
        "function_response": "tool",
        "tool_response": "tool",
        "observation": "tool",
        "ipython": "tool",
    }
)
"""Names of roles that others use, and what they are here."""
