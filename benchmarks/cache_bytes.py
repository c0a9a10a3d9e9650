"""Bytes of cache per token, allocated and by the formula: for every shape with MHA, GQA, MQA and MLA, and quantized.

The published comparisons are V2's: against DeepSeek 67B (93.3 % saved, abstract) and against MHA at the shapes of its
Table 9, which compares numbers; the bytes are those of pages that were allocated.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from benchmarks import peers
from fathom.families import preset
from fathom.model import StaticCache
from fathom.model.cache import PagePool
from fathom.plan import cache_bits_per_number, cache_bytes_per_token, cache_numbers_per_token
from fathom.plan.cache import with_attention
from fathom.plan.cache_rows import QuantizedFormat
from fathom.spec import LatentAttention, ModelSpec

FORMATS: tuple[QuantizedFormat, ...] = ("int8", "int6")


def measure(shape: str) -> dict[str, int]:
    spec = preset(f"bench-{shape}")
    latent = spec.attention
    assert isinstance(latent, LatentAttention)
    heads = latent.num_heads
    counts = {"MHA": heads, "GQA": max(1, heads // 4), "MQA": 1}
    specs = {kind: with_attention(spec, count) for kind, count in counts.items()} | {"MLA": spec}
    found = {}
    for kind, variant in specs.items():
        cache = StaticCache.allocate(variant, batch_size=2, max_length=64)
        assert cache.nbytes == cache.bytes_per_token * 2 * 64
        found[kind] = cache.bytes_per_token
    found["MLA by formula"] = (latent.kv_lora_rank + latent.qk_rope_head_dim) * spec.num_hidden_layers * 4
    assert found["MLA"] == found["MLA by formula"]
    return found


def stored(spec: ModelSpec, cache_format: QuantizedFormat) -> int:
    """Bytes per token of a pool that is allocated, and that the arithmetic agrees with."""
    pool = PagePool.allocate(spec, pages=2, page_size=8, cache_format=cache_format)
    assert pool.nbytes == 16 * pool.bytes_per_token
    assert pool.bytes_per_token == cache_bytes_per_token(spec, cache_format=cache_format)
    return round(pool.bytes_per_token)


def quantized(spec: ModelSpec, against: ModelSpec) -> dict[str, object]:
    """The model's cache in every format against another's in bfloat16."""
    peer = round(cache_bytes_per_token(against))
    sizes = {"bfloat16": round(cache_bytes_per_token(spec))} | {kind: stored(spec, kind) for kind in FORMATS}
    bits = {"bfloat16": 16.0} | {kind: cache_bits_per_number(spec.attention, kind) for kind in FORMATS}
    formats = {
        kind: {
            "bits_per_number": round(bits[kind], 4),
            "bytes_per_token": size,
            "saved_percent": round(100 * (1 - size / peer), 1),
            "times_smaller": round(peer / size, 2),
        }
        for kind, size in sizes.items()
    }
    return {
        "numbers_per_token": {"own": cache_numbers_per_token(spec), "peer": cache_numbers_per_token(against)},
        "peer_bfloat16_bytes_per_token": peer,
        "own": formats,
    }


def published() -> dict[str, object]:
    v2, lite, dense = (preset(name) for name in ("deepseek-v2", "deepseek-v2-lite", "deepseek-llm-67b"))
    assert isinstance(v2.attention, LatentAttention)
    large = replace(v2, attention=replace(v2.attention, num_heads=56))
    return {
        "V2 against DeepSeek 67B, GQA-8": quantized(v2, dense),
        "V2 against itself with MHA": quantized(v2, with_attention(v2, v2.attention.num_heads)),
        "V2 Table 9, small MoE against MHA": quantized(lite, with_attention(lite, lite.attention.num_heads)),
        "V2 Table 9, large MoE against MHA": quantized(large, with_attention(large, 56)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    out = parser.parse_args().out
    shapes = {shape: measure(shape) for shape in "tsml"}
    pages = {shape: {kind: stored(preset(f"bench-{shape}"), kind) for kind in FORMATS} for shape in "tsml"}
    result = {"bytes_per_token_float32": shapes, "bytes_per_token_quantized": pages, "published": published()}
    peers.write("cache-bytes", result, out)


if __name__ == "__main__":
    main()
