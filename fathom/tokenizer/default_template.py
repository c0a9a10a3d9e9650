"""Fathom's own chat template."""

from __future__ import annotations

from fathom.tokenizer.template_fragments import CALLS, LAST_QUESTION, REASONING, TOOL_SECTION

DEFAULT_TEMPLATE = (
    TOOL_SECTION
    + LAST_QUESTION
    + r"""{{- bos_token -}}
{% if not messages or messages[0]['role'] != 'system' %}{{- tool_section -}}{% endif %}
{% for message in messages %}
{% if message['role'] == 'system' %}
{{- message['content'] -}}
{% if loop.first and tools %}{{- '\n\n' ~ tool_section -}}{% endif %}
{% elif message['role'] == 'user' %}
{{- '<｜User｜>' + message['content'] -}}
{% elif message['role'] == 'assistant' %}
{{- '<｜Assistant｜>' -}}
"""
    + REASONING
    + r"""{{- (message['content'] or '').split('</think>')[-1] -}}
{% if message['tool_calls'] %}
"""
    + CALLS
    + r"""{% endif %}
{{- eos_token -}}
{% elif message['role'] == 'tool' %}
{{- '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' -}}
{% else %}
{{- raise_exception('unknown role ' + message['role']) -}}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{- '<｜Assistant｜>' -}}
{% if thinking is defined and thinking is not none %}
{{- '<think>\n' ~ ('' if thinking else '\n</think>\n\n') -}}
{% endif %}
{% endif %}
"""
)
"""Turns marked as in DeepSeek-V2: the dialogue is one sequence, each answer ends with end of sentence.

Earlier answers lose their reasoning: only the text after the last closing think tag is rendered, and the
``reasoning_content`` of answers after the last question where ``keep_thinking`` is set. ``tools`` follow the first
system message, or come first; calls are written as DeepSeek-V3 writes them. ``thinking`` opens the reasoning in
the prompt where it is true, and closes it there where it is false.
"""
