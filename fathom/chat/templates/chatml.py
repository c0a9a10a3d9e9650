"""ChatML, with tools and thinking as Qwen's models have them."""

from __future__ import annotations

from fathom.tokenizer.template_fragments import LAST_QUESTION, REASONING

TEMPLATE = (
    LAST_QUESTION
    + r"""{% if tools %}
{{- '<|im_start|>system\n' -}}
{% if messages and messages[0]['role'] == 'system' %}{{- messages[0]['content'] + '\n\n' -}}{% endif %}
{{- '# Tools\n\nYou may call one or more functions to assist with the user query.\n\n'
  ~ 'You are provided with function signatures within <tools></tools> XML tags:\n<tools>' -}}
{% for tool in tools %}{{- '\n' ~ (tool | tojson) -}}{% endfor %}
{{- '\n</tools>\n\nFor each function call, return a json object with function name and arguments within '
  ~ '<tool_call></tool_call> XML tags:\n'
  ~ '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n' -}}
{% endif %}
{% set state = namespace(results=false) %}
{% for message in messages %}
{% if state.results and message['role'] != 'tool' %}
{{- '<|im_end|>\n' -}}
{% set state.results = false %}
{% endif %}
{% if message['role'] == 'system' and loop.first and tools %}
{% elif message['role'] in ['system', 'user'] %}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' -}}
{% elif message['role'] == 'assistant' %}
{{- '<|im_start|>assistant\n' -}}
"""
    + REASONING
    + r"""{% set content = (message['content'] or '').split('</think>')[-1] %}
{{- content -}}
{% for call in message['tool_calls'] or [] %}
{% set called = call['function'] %}
{{- ('\n' if content or not loop.first else '') ~ '<tool_call>\n{"name": "' ~ called['name'] ~ '", "arguments": '
  ~ (called['arguments'] if called['arguments'] is string else (called['arguments']) | tojson)
  ~ '}\n</tool_call>' -}}
{% endfor %}
{{- '<|im_end|>\n' -}}
{% elif message['role'] == 'tool' %}
{{- ('' if state.results else '<|im_start|>user') ~ '\n<tool_response>\n' ~ message['content']
  ~ '\n</tool_response>' -}}
{% set state.results = true %}
{% else %}
{{- raise_exception('unknown role ' + message['role']) -}}
{% endif %}
{% endfor %}
{% if state.results %}{{- '<|im_end|>\n' -}}{% endif %}
{% if add_generation_prompt %}
{{- '<|im_start|>assistant\n' -}}
{% if thinking is defined and thinking is not none %}
{{- '<think>\n' ~ ('' if thinking else '\n</think>\n\n') -}}
{% endif %}
{% endif %}
"""
)
"""Each turn between markers, with its role, and no default system message (teknium/OpenHermes-2.5-Mistral-7B).

Tools, calls, their results and reasoning are written as by Qwen3 (tokenizer_config.json of Qwen/Qwen3-8B).
"""
