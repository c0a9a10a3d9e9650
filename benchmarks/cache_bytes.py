"""Bytes of cache per token, allocated and by the formula, for every shape and for the same shape with MHA, GQA, MQA."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import peers
from fathom.families import preset
from fathom.model import Cache
from fathom.plan.cache import with_attention
from fathom.spec import LatentAttention


def measure(shape: str) -> dict[str, int]:
    spec = preset(f"bench-{shape}")
    latent = spec.attention
    assert isinstance(latent, LatentAttention)
    heads = latent.num_heads
    counts = {"MHA": heads, "GQA": max(1, heads // 4), "MQA": 1}
    specs = {kind: with_attention(spec, count) for kind, count in counts.items()} | {"MLA": spec}
    found = {}
    for kind, variant in specs.items():
        cache = Cache.allocate(variant, batch_size=2, max_length=64)
        assert cache.nbytes == cache.bytes_per_token * 2 * 64
        found[kind] = cache.bytes_per_token
    found["MLA by formula"] = (latent.kv_lora_rank + latent.qk_rope_head_dim) * spec.num_hidden_layers * 4
    assert found["MLA"] == found["MLA by formula"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    out = parser.parse_args().out
    peers.write("cache-bytes", {"bytes_per_token_float32": {shape: measure(shape) for shape in "tsml"}}, out)


if __name__ == "__main__":
    main()
