"""What a server knows of a model before it is loaded: its names, its size, and how to load it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fathom.errors import SpecError
from fathom.plan import cache_bytes_per_token, count_parameters
from fathom.plan.serving import ServingMemory, serving_memory
from fathom.progress import Progress
from fathom.spec import GroupedQueryAttention
from fathom.spec.engine import EngineSpec
from fathom.spec.model import ModelSpec
from fathom.spec.sampling import SamplingParams

if TYPE_CHECKING:
    from fathom.inference.language_model import LanguageModel
    from fathom.inference.suggestions import Suggestions
    from fathom.tokenizer.bpe import Tokenizer

SHOWN_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Sampling parameters whose defaults GET /v1/models gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDefinition:
    """One model of a server.

    ``aliases`` are further names that requests may use, and ``adapters`` those that run it with an adapter. ``open``
    loads it, on a thread of its own; ``nbytes`` is what it then takes. ``facts`` are what GET /v1/models says of it.
    """

    name: str
    open: Callable[[Progress], LanguageModel]
    facts: Mapping[str, Any]
    nbytes: int = 0
    aliases: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()


def memory_of(
    spec: ModelSpec, engine: EngineSpec, memory: int, bits: int, weight_bytes: int | None = None
) -> ServingMemory:
    """Return what a model takes when it is served by such an engine within ``memory`` bytes."""
    return serving_memory(
        spec,
        memory,
        bits=bits,
        cache_format=engine.cache_format,
        cache_tokens=engine.cache_tokens,
        page_size=engine.page_size,
        max_batch=engine.max_batch,
        weight_bytes=weight_bytes,
        mtp_cache=engine.drafting in ("auto", "mtp") and spec.num_nextn_predict_layers > 0,
    )


def facts_of(
    spec: ModelSpec,
    tokenizer: Tokenizer,
    suggestions: Suggestions,
    *,
    engine: EngineSpec,
    cache_tokens: int,
    bits: int,
    nbytes: int,
    weights: str,
) -> dict[str, Any]:
    """Return what GET /v1/models says of a model; ``cache_tokens`` is the capacity of its page pool."""
    context = spec.max_position_embeddings
    attention = spec.attention
    windowed = isinstance(attention, GroupedQueryAttention) and attention.sliding_window is not None
    length = context if windowed else min(context, cache_tokens)
    return {
        "family": spec.family,
        "attention": attention.label,
        "context": length,
        "parameters": count_parameters(spec).total,
        "bytes": nbytes,
        "weights": weights,
        "supports_images": spec.vision is not None,
        "can_chat": tokenizer.can_chat,
        "supports_reasoning": "think" in (tokenizer.shown_template or ""),
        "cache_bytes_per_token": cache_bytes_per_token(spec, bits=bits, cache_format=engine.cache_format),
        "cache_pages": cache_tokens // engine.page_size,
        "sampling_defaults": {name: getattr(SamplingParams(), name) for name in SHOWN_DEFAULTS},
        "suggestions": dataclasses.asdict(suggestions),
    }


def names_of(definitions: Sequence[ModelDefinition]) -> dict[str, ModelDefinition]:
    """Return the definitions by every name that requests may use.

    Raises:
        SpecError: an empty name, or one that two models have.
    """
    found: dict[str, ModelDefinition] = {}
    for definition in definitions:
        for name in (definition.name, *definition.aliases, *definition.adapters):
            if not name.strip():
                raise SpecError("name", "is empty", "give the model's name in requests")
            if name in found:
                raise SpecError(
                    "name", f"{name!r} names two models", "give one of them another: NAME=PATH instead of PATH"
                )
            found[name] = definition
    return found
