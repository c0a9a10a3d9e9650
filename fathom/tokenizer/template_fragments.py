r"""Jinja fragments that templates of several families share.

Every fragment writes through ``{{- ... -}}``, so that line breaks between fragments and blocks are dropped.
"""

from __future__ import annotations

TOOL_SECTION = r"""{% set tool_section %}
{% if tools %}
{{- 'You can call tools. To do so, end your answer with the calls, each with its arguments as a JSON object:\n'
  ~ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\nARGUMENTS\n```'
  ~ '<｜tool▁call▁end｜><｜tool▁calls▁end｜>\n\nThe tools, with the JSON Schema of their parameters:' -}}
{% for tool in tools %}
{{- '\n' ~ ((tool['function'] if 'function' in tool else tool) | tojson) -}}
{% endfor %}
{{- '\n\n' -}}
{% endif %}
{% endset %}
"""
"""Sets ``tool_section``, in Fathom's own wording: no published template of DeepSeek's before V3.1 lists tools."""

CALLS = r"""{{- '<｜tool▁calls▁begin｜>' -}}
{% for call in message['tool_calls'] %}
{% set called = call['function'] %}
{{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' ~ called['name'] ~ '\n```json\n'
  ~ (called['arguments'] if called['arguments'] is string else (called['arguments']) | tojson)
  ~ '\n```<｜tool▁call▁end｜>' ~ ('' if loop.last else '\n') -}}
{% endfor %}
{{- '<｜tool▁calls▁end｜>' -}}
"""
"""Writes the calls of ``message`` as DeepSeek-V3 and R1 do."""

LAST_QUESTION = r"""{% set seen = namespace(question=-1) %}
{% for message in messages %}
{% if message['role'] == 'user' %}{% set seen.question = loop.index0 %}{% endif %}
{% endfor %}
"""
"""Sets ``seen.question`` to the index of the last user message."""

REASONING = r"""{% if keep_thinking and loop.index0 > seen.question and message['reasoning_content'] %}
{{- '<think>\n' ~ message['reasoning_content'] ~ '\n</think>\n\n' -}}
{% endif %}
"""
"""Writes the reasoning of the turns after the last question, if ``keep_thinking`` is set."""
