"""Bytes per token in the key-value cache."""

from __future__ import annotations

from dataclasses import replace

from fathom.plan.cache_rows import quantized_rows
from fathom.spec import CacheFormat, GroupedQueryAttention, LatentAttention, ModelSpec, check


def cache_numbers_per_token(spec: ModelSpec) -> int:
    """Numbers cached per token over all decoder layers (V2 Table 1); multi-token prediction is not counted."""
    return spec.num_hidden_layers * spec.attention.cache_numbers_per_token


def cache_bytes_per_token(spec: ModelSpec, *, bits: float = 16, cache_format: CacheFormat = "plain") -> float:
    """Bytes cached per token over all layers, at ``bits`` per element where they are not quantized: 16 is bfloat16.

    Of a quantized format the bytes are those a pool of pages stores, scales and padding included.
    """
    check.positive("bits", bits)
    if cache_format == "plain":
        return cache_numbers_per_token(spec) * bits / 8
    return float(spec.num_hidden_layers * sum(row.nbytes for row in quantized_rows(spec.attention, cache_format)))


def cache_bytes(spec: ModelSpec, context: int, *, bits: float = 16, cache_format: CacheFormat = "plain") -> float:
    """Bytes one sequence of ``context`` tokens holds: a sliding window never holds more than its own length."""
    check.positive("context", context)
    window = spec.attention.sliding_window if isinstance(spec.attention, GroupedQueryAttention) else None
    held = context if window is None else min(context, window)
    return cache_bytes_per_token(spec, bits=bits, cache_format=cache_format) * held


def with_attention(spec: ModelSpec, num_kv_heads: int) -> ModelSpec:
    """Return the model with grouped-query attention of equal head count and width instead.

    MLA's head width is that of its part without position, which is also its value width in every release.
    """
    old = spec.attention
    width = old.qk_nope_head_dim if isinstance(old, LatentAttention) else old.head_dim
    new = GroupedQueryAttention(num_heads=old.num_heads, num_kv_heads=num_kv_heads, head_dim=width)
    return replace(spec, attention=new)


def compare_caches(spec: ModelSpec, *, bits: float = 16) -> dict[str, float]:
    """Bytes per token of MHA, GQA-8, MQA and the model's own attention at its shape (V2 Table 1).

    GQA-8 is omitted where the heads do not divide by 8. Keys are ``Attention.label`` names.
    """
    heads = spec.attention.num_heads
    counts = [heads, *([8] if heads % 8 == 0 else []), 1]
    models = [*(with_attention(spec, count) for count in counts), spec]
    return {model.attention.label: cache_bytes_per_token(model, bits=bits) for model in models}
