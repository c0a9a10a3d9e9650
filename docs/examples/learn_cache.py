"""One new token through MHA, GQA, MQA and MLA: what each computes for it, and what each keeps of it."""

from __future__ import annotations

import torch
from learn_shapes import KINDS, one_layer, show

from fathom.families import preset
from fathom.model import StaticCache, build
from fathom.plan import cache_bytes_per_token, compare_caches

x_BTD = torch.randn(1, 1, 256, generator=torch.Generator().manual_seed(0))
show("x_BTD", x_BTD, "one sequence, one new token")
for kind, shape in KINDS.items():
    spec = one_layer(kind)
    attention = build(spec).layers[0].self_attn
    print(f"\n{kind}")
    if kind == "MLA":
        q_BTHW = attention.q_proj(x_BTD).view(1, 1, 8, -1)
        latent_BTC, rope_key_BTR = attention.kv_a_proj_with_mqa(x_BTD).split([128, 16], dim=-1)
        show("q_BTHW", q_BTHW, "q_proj: W = P + R, a part without and a part with position")
        show("latent_BTC", latent_BTC, "kv_a_proj_with_mqa: cached, shared by all heads")
        show("rope_key_BTR", rope_key_BTR, "the same product: cached, shared by all heads")
        kept = latent_BTC.numel() + rope_key_BTR.numel()
    else:
        q_BTHW = attention.q_proj(x_BTD).view(1, 1, 8, -1)
        k_BTGW = attention.k_proj(x_BTD).view(1, 1, -1, 32)
        v_BTGU = attention.v_proj(x_BTD).view(1, 1, -1, 32)
        show("q_BTHW", q_BTHW, "q_proj: used once, then forgotten")
        show("k_BTGW", k_BTGW, f"k_proj: cached; each serves {8 // k_BTGW.shape[2]} query heads")
        show("v_BTGU", v_BTGU, "v_proj: cached")
        kept = k_BTGW.numel() + v_BTGU.numel()
    cache = StaticCache.allocate(spec, batch_size=1, max_length=64)
    assert kept == shape.cache_numbers_per_token == cache.bytes_per_token // 4
    print(f"kept: {kept} numbers per token and layer, {2 * kept} bytes in bfloat16")

v2, dense = preset("deepseek-v2"), preset("deepseek-llm-67b")
print("\nDeepSeek-V2's shape (128 heads of width 128, 60 layers), bfloat16, per token and all layers:")
for label, size in compare_caches(v2).items():
    print(
        f"{label:<10} {size:>9,.0f} bytes   {v2.max_position_embeddings * size / 2**30:8.1f} GiB for a context of 160K"
    )
saved = 1 - cache_bytes_per_token(v2, bits=6) / cache_bytes_per_token(dense)
print(f"V2 at 6 bits a number against DeepSeek 67B ({dense.attention.label}) at 16: {saved:.1%} less")
