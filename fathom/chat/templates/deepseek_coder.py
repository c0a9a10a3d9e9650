"""The chat template of DeepSeek Coder."""

from __future__ import annotations

TEMPLATE = r"""{{- bos_token -}}
{% set found = namespace(system=false) %}
{% for message in messages %}
{% if message['role'] == 'system' %}{% set found.system = true %}{% endif %}
{% endfor %}
{% if not found.system %}
{{- 'You are an AI programming assistant, utilizing the Deepseek Coder model, developed by Deepseek Company, '
  ~ 'and you only answer questions related to computer science. For politically sensitive questions, '
  ~ 'security and privacy issues, and other non-computer science questions, you will refuse to answer\n' -}}
{% endif %}
{% for message in messages %}
{% if message['role'] == 'system' %}
{{- message['content'] -}}
{% elif message['role'] == 'user' %}
{{- '### Instruction:\n' + message['content'] + '\n' -}}
{% elif message['role'] == 'assistant' %}
{{- '### Response:\n' + message['content'] + '\n<|EOT|>\n' -}}
{% else %}
{{- raise_exception('unknown role ' + message['role']) -}}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{- '### Response:\n' -}}{% endif %}
"""
"""Turns under headings; answers end with a token of their own (deepseek-ai/DeepSeek-Coder, README, "Chat Model
Inference", and tokenizer_config.json of the 6.7B and 33B instruct models, whose default system message this is)."""
