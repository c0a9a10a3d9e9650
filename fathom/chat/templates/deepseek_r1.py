"""The chat template of DeepSeek-R1 and its distilled models."""

from __future__ import annotations

from fathom.chat.templates import deepseek_v3

TEMPLATE = (
    deepseek_v3.TURNS
    + r"{% if add_generation_prompt and not state.results %}{{- '<｜Assistant｜><think>\n' -}}{% endif %}"
    + "\n"
)
"""V3's turns, and a prompt that opens the reasoning (tokenizer_config.json of deepseek-ai/DeepSeek-R1, February 2025).

Earlier reasoning is dropped: an answer is rendered from its closing think tag on. ``keep_thinking`` adds the reasoning
of answers after the last question, as the model wrote it.
"""
