"""The chat template of our own models."""

from __future__ import annotations

from fathom.tokenizer import special

DEFAULT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '" + special.USER + "' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '" + special.ASSISTANT + "' + message['content'].split('" + special.THINK_END + "')[-1] + eos_token }}"
    "{% elif message['role'] == 'tool' %}"
    "{{ '" + special.TOOL_OUTPUT_BEGIN + "' + message['content'] + '" + special.TOOL_OUTPUT_END + "' }}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + special.ASSISTANT + "' }}{% endif %}"
)
"""Turns marked as in DeepSeek-V2: the whole dialogue one sequence, each answer closed by end of sentence.

Earlier answers lose their reasoning: only what follows the last closing think tag is shown again.
"""
