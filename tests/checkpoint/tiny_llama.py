"""The tiny model that tests publish, fetch and open."""

from __future__ import annotations

from fathom.spec import GroupedQueryAttention, ModelSpec

SPEC = ModelSpec(
    name="tiny",
    family="llama",
    vocab_size=20,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=1,
    attention=GroupedQueryAttention(num_heads=2, num_kv_heads=1, head_dim=4),
    max_position_embeddings=16,
)
