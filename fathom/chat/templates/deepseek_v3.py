"""The chat template of DeepSeek-V3."""

from __future__ import annotations

from fathom.tokenizer.template_fragments import CALLS, LAST_QUESTION, REASONING, TOOL_SECTION

TURNS = (
    TOOL_SECTION
    + LAST_QUESTION
    + r"""{% set state = namespace(system='', first=true, results=false) %}
{% for message in messages %}
{% if message['role'] == 'system' %}
{% set state.system = state.system ~ ('' if state.first else '\n\n') ~ message['content'] %}
{% set state.first = false %}
{% endif %}
{% endfor %}
{{- bos_token ~ state.system ~ ('\n\n' if state.system and tools else '') ~ tool_section -}}
{% for message in messages %}
{% if message['role'] == 'user' %}
{% set state.results = false %}
{{- '<｜User｜>' + message['content'] -}}
{% elif message['role'] == 'assistant' %}
{{- '<｜tool▁outputs▁end｜>' if state.results else '<｜Assistant｜>' -}}
{% set state.results = false %}
"""
    + REASONING
    + r"""{{- (message['content'] or '').split('</think>')[-1] -}}
{% if message['tool_calls'] %}
"""
    + CALLS
    + r"""{% endif %}
{{- '<｜end▁of▁sentence｜>' -}}
{% elif message['role'] == 'tool' %}
{{- ('\n' if state.results else '<｜tool▁outputs▁begin｜>')
  ~ '<｜tool▁output▁begin｜>' ~ message['content'] ~ '<｜tool▁output▁end｜>' -}}
{% set state.results = true %}
{% elif message['role'] != 'system' %}
{{- raise_exception('unknown role ' + message['role']) -}}
{% endif %}
{% endfor %}
{% if state.results %}{{- '<｜tool▁outputs▁end｜>' -}}{% endif %}
"""
)
"""The turns without the generation prompt, in which V3 and R1 differ.

All system messages come first. The answer to tools' results follows them without a marker of its own
(tokenizer_config.json of deepseek-ai/DeepSeek-V3 and DeepSeek-R1). In the published text only the first calls and the
first results of a dialogue get their opening markers; here all do, as in vLLM's tool_chat_template_deepseekv3.jinja.
Neither has a format for ``tools``; here they follow the system message, as in Fathom's own template.
"""

TEMPLATE = TURNS + "{% if add_generation_prompt and not state.results %}{{- '<｜Assistant｜>' -}}{% endif %}\n"
"""The turns, and the marker that starts an answer."""
