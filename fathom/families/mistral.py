"""Mistral 7B v0.1 and Mixtral 8x7B: grouped-query attention, a sliding window, and top-2 experts."""

from __future__ import annotations

from fathom.families.preset import Preset
from fathom.spec import GroupedQueryAttention, MixtureOfExperts, ModelSpec, RopeSpec, RouterSpec

_MISTRAL = ModelSpec(
    name="mistral-7b",
    family="mistral",
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    attention=GroupedQueryAttention(num_heads=32, num_kv_heads=8, head_dim=128, sliding_window=4096),
    max_position_embeddings=32768,  # the paper's context is 8192; the released file's value is unconfirmed
    rms_norm_eps=1e-5,
    bos_token_id=1,
    eos_token_id=2,
)

_MIXTRAL = ModelSpec(
    name="mixtral-8x7b",
    family="mixtral",
    vocab_size=32000,
    hidden_size=4096,
    num_hidden_layers=32,
    attention=GroupedQueryAttention(num_heads=32, num_kv_heads=8, head_dim=128),
    max_position_embeddings=32768,
    moe=MixtureOfExperts(
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=14336,
        router=RouterSpec(normalize=True),  # a softmax over the two best logits is a renormalised softmax over all
    ),
    rope=RopeSpec(theta=1_000_000.0),
    rms_norm_eps=1e-5,
    bos_token_id=1,
    eos_token_id=2,
)

PRESETS = (
    Preset(
        _MISTRAL,
        "Mistral 7B Table 1",
        ("max_position_embeddings", "rope.theta", "bos_token_id", "eos_token_id"),
    ),
    Preset(_MIXTRAL, "Mixtral of Experts, released config", ("bos_token_id", "eos_token_id")),
)
