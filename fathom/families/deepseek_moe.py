"""DeepSeekMoE 2B, 16B and 145B: multi-head attention with fine-grained and shared experts."""

from __future__ import annotations

from fathom.families.preset import Preset
from fathom.spec import BalanceSpec, GroupedQueryAttention, MixtureOfExperts, ModelSpec, RouterSpec

_2B = ModelSpec(
    name="deepseek-moe-2b",
    family="deepseek",
    vocab_size=8192,  # "8K"; the exact size is unconfirmed
    hidden_size=1280,
    num_hidden_layers=9,
    attention=GroupedQueryAttention(num_heads=10, num_kv_heads=10, head_dim=128),
    max_position_embeddings=2048,
    moe=MixtureOfExperts(
        n_routed_experts=63,
        num_experts_per_tok=7,
        moe_intermediate_size=854,  # "0.25 x FFN", not printed: fitted to the published count
        n_shared_experts=1,
        router=RouterSpec(balance=BalanceSpec(expert_loss=0.01)),
    ),
)

_16B = ModelSpec(
    name="deepseek-moe-16b",
    family="deepseek",
    vocab_size=102400,
    hidden_size=2048,
    intermediate_size=10944,
    num_hidden_layers=28,
    attention=GroupedQueryAttention(num_heads=16, num_kv_heads=16, head_dim=128),
    max_position_embeddings=4096,
    first_k_dense_replace=1,
    moe=MixtureOfExperts(
        n_routed_experts=64,
        num_experts_per_tok=6,
        moe_intermediate_size=1408,
        n_shared_experts=2,
        router=RouterSpec(balance=BalanceSpec(expert_loss=0.001)),
    ),
    bos_token_id=100000,
    eos_token_id=100001,
)

_145B = ModelSpec(
    name="deepseek-moe-145b",
    family="deepseek",
    vocab_size=102400,
    hidden_size=4096,
    intermediate_size=22528,  # (shared + active routed) x expert width, as V2 and V3 have it; fits the published count
    num_hidden_layers=62,
    attention=GroupedQueryAttention(num_heads=32, num_kv_heads=32, head_dim=128),
    max_position_embeddings=4096,
    first_k_dense_replace=1,
    moe=MixtureOfExperts(
        n_routed_experts=128,
        num_experts_per_tok=12,
        moe_intermediate_size=1408,  # "0.125 x FFN", not printed: fitted to the published count
        n_shared_experts=4,
        router=RouterSpec(balance=BalanceSpec(expert_loss=0.003, device_loss=0.05, devices=4)),
    ),
)

PRESETS = (
    Preset(
        _2B,
        "DeepSeekMoE §4.1.3, Table 7",
        ("vocab_size", "moe.moe_intermediate_size", "rope.theta", "rms_norm_eps"),
    ),
    Preset(_16B, "DeepSeekMoE §5.1.2, Table 7, released config"),
    Preset(
        _145B,
        "DeepSeekMoE §7.1, Table 7",
        ("vocab_size", "intermediate_size", "moe.moe_intermediate_size", "rope.theta", "rms_norm_eps"),
    ),
)
