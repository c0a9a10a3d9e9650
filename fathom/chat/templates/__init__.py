"""Chat templates of every family, in jinja2.

All are of our own writing; what they give is, character for character, what the published ones give for a dialogue
that those can show. They run in the sandbox of ``chat.sandbox`` and in other people's engines alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fathom.chat.templates import (
    chatml,
    deepseek_coder,
    deepseek_llm,
    deepseek_r1,
    deepseek_v2,
    deepseek_v3,
    mistral,
)
from fathom.tokenizer.default_template import DEFAULT_TEMPLATE

TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "fathom": DEFAULT_TEMPLATE,
        "deepseek-llm": deepseek_llm.TEMPLATE,
        "deepseek-coder": deepseek_coder.TEMPLATE,
        "deepseek-v2": deepseek_v2.TEMPLATE,
        "deepseek-v3": deepseek_v3.TEMPLATE,
        "deepseek-r1": deepseek_r1.TEMPLATE,
        "chatml": chatml.TEMPLATE,
        "mistral": mistral.TEMPLATE,
    }
)

__all__ = ["DEFAULT_TEMPLATE", "TEMPLATES"]
