"""Other names of fields we have, as other servers and their clients give them.

A field given under its own name wins; a different value under another name is then ignored and named.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from fathom.serve.schemas.ignored import IgnoredFields

SAMPLING_ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "max_new_tokens": "max_tokens",  # transformers, TGI
        "num_predict": "max_tokens",  # Ollama
        "n_predict": "max_tokens",  # llama.cpp
        "repeat_penalty": "repetition_penalty",  # Ollama, llama.cpp
        "stop_sequences": "stop",  # TGI, Anthropic
        "random_seed": "seed",  # Mistral
    }
)
OPTIONS: Mapping[str, str] = MappingProxyType(  # Ollama's object of sampling options
    {
        f"options.{name}": name
        for name in (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "max_tokens",
            "min_tokens",
            "stop",
            "seed",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
        )
    }
)
CHAT_ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "reasoning.effort": "reasoning_effort",  # OpenRouter
        "reasoning.max_tokens": "thinking_budget",
        "reasoning.enabled": "thinking",
        "enable_thinking": "thinking",  # DashScope, SGLang
        "functions": "tools",  # OpenAI's former interface
        "function_call": "tool_choice",
    }
)


def aliased_values(body: BaseModel, aliases: Mapping[str, str], ignored: IgnoredFields) -> dict[str, Any]:
    """Return the values that fields of ``body`` get from their other names.

    A value that the field's own, or one before it in ``aliases``, contradicts is added to ``ignored``.
    """
    values: dict[str, Any] = {}
    for name, field in aliases.items():
        value = _value(body, name)
        if value is None:
            continue
        own = values.get(field, getattr(body, field))
        if own is None:
            values[field] = value
        elif own != value:
            ignored.add(name, note=f"{field} has another value")
    return values


def _value(body: BaseModel, path: str) -> Any:
    value: Any = body
    for name in path.split("."):
        value = getattr(value, name) if isinstance(value, BaseModel) else None
    return value
