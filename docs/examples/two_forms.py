"""Latent attention in its two forms, and what its cache holds, at bench shape T."""

from __future__ import annotations

import torch

from fathom.families import preset
from fathom.model import StaticCache, build

spec = preset("bench-t")
model = build(spec).eval()
tokens_BT = torch.randint(0, spec.vocab_size, (2, 100), generator=torch.Generator().manual_seed(0))
with torch.inference_mode():
    logits = {}
    for form in ("expanded", "absorbed"):
        cache = StaticCache.allocate(spec, batch_size=2, max_length=128)
        model(tokens_BT[:, :60], cache=cache, form=form)
        logits[form] = model.logits(model(tokens_BT[:, 60:], cache=cache, form=form).hidden_BTD)
difference = (logits["expanded"] - logits["absorbed"]).abs().max().item()
print(f"largest difference of logits: {difference:.1e}, of logits up to {logits['expanded'].abs().max():.2f}")
latent, rope = spec.attention.kv_lora_rank, spec.attention.qk_rope_head_dim
print(
    f"cache: {cache.bytes_per_token} bytes per token = ({latent} + {rope}) x {spec.num_hidden_layers} layers x 4 bytes"
)
