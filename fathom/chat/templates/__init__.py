"""Chat templates of every family, in jinja2.

They are written for Fathom, and their output equals that of the published ones, character for character, for every
dialogue those support. They run in ``chat.template_process`` and in other engines.
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
