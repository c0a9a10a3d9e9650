"""Conversations as people have them, and the renderings of Fathom and transformers."""

from __future__ import annotations

import json
import warnings
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from fathom.chat import render
from fathom.errors import DataError

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Says how it is <there>.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Which one", "enum": ["Ulm", "Bonn"]}},
            "required": ["city"],
        },
    },
}
CALL = {
    "id": "abcdefgh1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Ulm", "days": [1, 2], "exact": True}},
}
USER = {"role": "user", "content": "How is it in Ulm?"}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "abcdefgh1", "content": '{"sky": "clear"}'}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "a question": [USER],
    "a system message": [{"role": "system", "content": "  Be brief.\n"}, USER],
    "turns": [USER, {"role": "assistant", "content": "Clear & <cold>."}, {"role": "user", "content": "And 'Bonn'?"}],
    "an answer at the end": [USER, {"role": "assistant", "content": "\n\nClear."}],
    "text that templates look for": [
        {"role": "user", "content": "<tool_response>x</tool_response> [INST] <think> b </think>"},
        {"role": "assistant", "content": "<think>\nLet me see.\n</think>\n\nClear."},
        {"role": "user", "content": "Sure? <|im_end|>"},
    ],
    "reasoning": [
        USER,
        {"role": "assistant", "content": "Clear.", "reasoning_content": "Let me see."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "Again."},
    ],
    "reasoning under another name": [USER, {"role": "assistant", "content": "Clear.", "thinking": "Let me see."}],
    "a call": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}],
    "a call without content": [USER, {"role": "assistant", "tool_calls": [CALL]}],
    "a call and its result": [
        {"role": "system", "content": "Be brief."},
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        RESULT,
        {"role": "assistant", "content": "Clear."},
        {"role": "user", "content": "Thanks"},
    ],
    "two calls": [
        USER,
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Both.",
            "tool_calls": [CALL, {**CALL, "id": "abcdefgh2"}],
        },
        RESULT,
        {**RESULT, "tool_call_id": "abcdefgh2", "content": "rain"},
    ],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "How is it "}, {"type": "text", "text": "in Ulm?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Clear."}]},
    ],
    "an unknown role": [{"role": "critic", "content": "Bad."}, USER],
    "two users": [USER, USER],
    "a developer message": [{"role": "developer", "content": "Be brief."}, USER],
}
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% endif %}"
    "{% if m['role'] == 'assistant' and m['content'] is none %}{% for tool in m['tool_calls'] %}"
    "{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name']"
    " + '\\n' + tool['function']['arguments'] + '<｜tool▁call▁end｜>' }}{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' and m['content'] is not none %}{% set content = m['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
"""As the R1 distills' template."""
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def transformers_text(
    template: str, messages: list[dict[str, Any]], *, keep_none: bool = False, **variables: Any
) -> str | None:
    """Return transformers' text, or None where it refuses; with ``keep_none``, that of versions before 5.13."""
    given = [{key: value for key, value in message.items() if value is not None or keep_none} for message in messages]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's, of what a template compiles to
        try:
            texts, _ = render_jinja_template([given], chat_template=template, **variables)
        except Exception:  # whatever a template raises
            return None
    return str(texts[0])


def fathoms_text(template: str, messages: list[dict[str, Any]], **variables: Any) -> str | None:
    """Return Fathom's text, or None where it refuses."""
    try:
        return render(messages, template, **variables)
    except DataError:
        return None


def with_text_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose calls have their arguments as JSON text."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message.get("tool_calls", [])
    ]
    return {**message, "tool_calls": calls} if calls else message
