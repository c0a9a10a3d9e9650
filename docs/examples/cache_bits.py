"""What one token leaves in the cache of DeepSeek-V2, beside DeepSeek 67B, and what a real pool of pages takes."""

from __future__ import annotations

from fathom.families import preset
from fathom.model.cache import PagePool
from fathom.plan import cache_bits_per_number, cache_bytes_per_token

v2, dense = preset("deepseek-v2"), preset("deepseek-llm-67b")
grouped = cache_bytes_per_token(dense)
print(f"67B, {dense.attention.label}, bfloat16: {grouped:,.0f} bytes per token")
for kind in ("plain", "int8", "int6"):
    latent = cache_bytes_per_token(v2, cache_format=kind)
    bits = 16.0 if kind == "plain" else cache_bits_per_number(v2.attention, kind)
    saved = 1 - latent / grouped
    print(f"V2, {v2.attention.label}, {kind}: {latent:,.0f} bytes, {bits:.3f} bits per number, {saved:.1%} less")
pool = PagePool.allocate(v2, pages=2, page_size=32, cache_format="int6")
print(f"a pool of {2 * 32} tokens in int6 really takes {pool.nbytes:,} bytes, {pool.bytes_per_token:,.0f} per token")
