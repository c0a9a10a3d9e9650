"""Chat: templates, reasoning, tool calls, structured output and fill-in-the-middle; text in, token ids out."""

from __future__ import annotations

from fathom.chat.encoding import encode_chat, render

__all__ = ["encode_chat", "render"]
