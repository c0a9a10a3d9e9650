"""The chat template of Mistral and Mixtral since version 3 of their tokenizer."""

from __future__ import annotations

TEMPLATE = r"""{{- bos_token -}}
{% set state = namespace(system='', question=-1, follows=false) %}
{% for message in messages %}
{% if message['role'] == 'system' %}
{% set state.system = state.system ~ message['content'] ~ '\n\n' %}
{% elif message['role'] == 'user' %}
{% set state.question = loop.index0 %}
{% endif %}
{% endfor %}
{% for message in messages %}
{% if message['role'] == 'user' %}
{% if loop.index0 == state.question and tools %}
{{- '[AVAILABLE_TOOLS] ' ~ (tools | tojson) ~ '[/AVAILABLE_TOOLS]' -}}
{% endif %}
{{- '[INST] ' ~ (state.system if loop.index0 == state.question else '') ~ message['content'] ~ '[/INST]' -}}
{% elif message['role'] == 'assistant' and message['tool_calls'] %}
{% if message['content'] %}{{- raise_exception('an answer has both content and calls') -}}{% endif %}
{{- '[TOOL_CALLS] [' -}}
{% for call in message['tool_calls'] %}
{% set called = call['function'] %}
{% if (call['id'] or '') | length != 9 %}{{- raise_exception('the id of a call must have 9 characters') -}}{% endif %}
{{- '{"name": ' ~ (called['name'] | tojson) ~ ', "arguments": '
  ~ (called['arguments'] if called['arguments'] is string else (called['arguments']) | tojson)
  ~ ', "id": ' ~ (call['id'] | tojson) ~ '}' ~ ('' if loop.last else ', ') -}}
{% endfor %}
{{- ']' ~ eos_token -}}
{% elif message['role'] == 'assistant' %}
{{- ' ' + message['content'] + eos_token -}}
{% elif message['role'] == 'tool' %}
{% if (message['tool_call_id'] or '') | length != 9 %}
{{- raise_exception('the tool_call_id of a result must have 9 characters') -}}
{% endif %}
{{- '[TOOL_RESULTS] {"content": ' ~ (message['content'] | tojson) ~ ', "call_id": '
  ~ (message['tool_call_id'] | tojson) ~ '}[/TOOL_RESULTS]' -}}
{% elif message['role'] != 'system' %}
{{- raise_exception('unknown role ' + message['role']) -}}
{% endif %}
{% endfor %}
"""
"""Instructions in brackets; system message and tools are part of the last one (mistralai/mistral-common, version 3 of
the tokenizer: tests/test_tokenize_v2.py and tests/data/chat_templates/v3_spm.jinja). There is no generation prompt."""
