"""The chat template of DeepSeek-V2, V2-Lite, Coder-V2 and VL's language model."""

from __future__ import annotations

from fathom.chat.templates import deepseek_llm

TEMPLATE = deepseek_llm.TEMPLATE
"""As DeepSeek LLM's, with a system message, which its authors allow (deepseek-ai/DeepSeek-V2, README, section 8)."""
