"""The chat template of DeepSeek LLM."""

from __future__ import annotations

TEMPLATE = r"""{{- bos_token -}}
{% for message in messages %}
{% if message['role'] == 'user' %}
{{- 'User: ' + message['content'] + '\n\n' -}}
{% elif message['role'] == 'assistant' %}
{{- 'Assistant: ' + message['content'] + eos_token -}}
{% elif message['role'] == 'system' %}
{{- message['content'] + '\n\n' -}}
{% else %}
{{- raise_exception('unknown role ' + message['role']) -}}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{- 'Assistant:' -}}{% endif %}
"""
"""Turns with roles in plain text (deepseek-ai/DeepSeek-LLM, README, "Chat Completion"; its authors advise against a
system message). The prompt ends without the space that the answer starts with."""
