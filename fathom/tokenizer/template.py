"""The chat template of our own models."""

from __future__ import annotations

from fathom.tokenizer import special

_CALL = (
    special.TOOL_CALL_BEGIN + "function" + special.TOOL_SEPARATOR + "{name}\\n```json\\n{arguments}\\n```",
    special.TOOL_CALL_END,
)
_EXAMPLE = "".join(_CALL).format(name="NAME", arguments="ARGUMENTS")
_TOOLS = (
    "{% set tool_section %}{% if tools %}"
    "{{ 'You can call tools. To do so, end your answer with the calls, each with its arguments as a JSON object:\\n"
    + special.TOOL_CALLS_BEGIN
    + _EXAMPLE
    + special.TOOL_CALLS_END
    + "\\n\\nThe tools, with the JSON Schema of their parameters:' }}"
    "{% for tool in tools %}{{ '\\n' ~ ((tool['function'] if 'function' in tool else tool) | tojson) }}{% endfor %}"
    "{{ '\\n\\n' }}{% endif %}{% endset %}"
)
_CALLS = (
    "{% if message['tool_calls'] %}{{ '" + special.TOOL_CALLS_BEGIN + "' }}"
    "{% for call in message['tool_calls'] %}{% set called = call['function'] %}"
    "{{ '"
    + _CALL[0].format(
        name="' ~ called['name'] ~ '",
        arguments="' ~ (called['arguments'] if called['arguments'] is string else (called['arguments']) | tojson) ~ '",
    )
    + "' ~ '"
    + _CALL[1]
    + "' }}{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% endfor %}{{ '" + special.TOOL_CALLS_END + "' }}{% endif %}"
)
DEFAULT_TEMPLATE = (
    _TOOLS + "{{ bos_token }}"
    "{% if not messages or messages[0]['role'] != 'system' %}{{ tool_section }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% if loop.first and tools %}{{ '\\n\\n' ~ tool_section }}{% endif %}"
    "{% elif message['role'] == 'user' %}{{ '" + special.USER + "' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '"
    + special.ASSISTANT
    + "' + (message['content'] or '').split('"
    + special.THINK_END
    + "')[-1] }}"
    + _CALLS
    + "{{ eos_token }}"
    "{% elif message['role'] == 'tool' %}"
    "{{ '" + special.TOOL_OUTPUT_BEGIN + "' + message['content'] + '" + special.TOOL_OUTPUT_END + "' }}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + special.ASSISTANT + "' }}"
    "{% if thinking is defined and thinking is not none %}{{ '" + special.THINK_BEGIN + "\\n' }}"
    "{% if not thinking %}{{ '\\n" + special.THINK_END + "\\n\\n' }}{% endif %}{% endif %}{% endif %}"
)
"""Turns marked as in DeepSeek-V2: the whole dialogue one sequence, each answer closed by end of sentence.

Earlier answers lose their reasoning: only what follows the last closing think tag is shown again. ``tools`` stand after
the first system message, or at the beginning; calls are written as DeepSeek-V3 writes them. ``thinking`` opens the
reasoning in the prompt where it is true, and closes it there where it is false.
"""
