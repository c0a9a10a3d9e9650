"""DeepSeek-V2, V2-Lite, V2.5 and the Coder-V2 models: multi-head latent attention and device-limited routing."""

from __future__ import annotations

from dataclasses import replace

from fathom.families.preset import Preset
from fathom.spec import (
    BalanceSpec,
    GroupLimited,
    LatentAttention,
    MixtureOfExperts,
    ModelSpec,
    RopeSpec,
    RouterSpec,
    YarnScaling,
)


def _rope(mscale: float) -> RopeSpec:
    # V2 §3.1.4; 0.707 gives the paper's 0.0707 ln s + 1, and V2.5 is released with 1.0.
    scaling = YarnScaling(factor=40.0, original_max_position_embeddings=4096, mscale=mscale, mscale_all_dim=mscale)
    return RopeSpec(layout="interleaved", scaling=scaling)


_V2 = ModelSpec(
    name="deepseek-v2",
    family="deepseek_v2",
    vocab_size=102400,
    hidden_size=5120,
    intermediate_size=12288,
    num_hidden_layers=60,
    attention=LatentAttention(
        num_heads=128,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    ),
    max_position_embeddings=163840,
    first_k_dense_replace=1,
    moe=MixtureOfExperts(
        n_routed_experts=160,
        num_experts_per_tok=6,
        moe_intermediate_size=1536,
        n_shared_experts=2,
        router=RouterSpec(
            select=GroupLimited(n_group=8, topk_group=3, group_score="max"),
            scale=16.0,
            balance=BalanceSpec(
                expert_loss=0.003,
                device_loss=0.05,
                communication_loss=0.02,
                devices=8,
                devices_per_token=3,
                capacity_factor=1.0,
                drop_exempt_fraction=0.1,
            ),
        ),
    ),
    rope=_rope(0.707),
    bos_token_id=100000,
    eos_token_id=100001,
)

_V2_LITE = ModelSpec(
    name="deepseek-v2-lite",
    family="deepseek_v2",
    vocab_size=102400,
    hidden_size=2048,
    intermediate_size=10944,
    num_hidden_layers=27,
    attention=LatentAttention(
        num_heads=16, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
    ),
    max_position_embeddings=163840,
    first_k_dense_replace=1,
    moe=MixtureOfExperts(
        n_routed_experts=64,
        num_experts_per_tok=6,
        moe_intermediate_size=1408,
        n_shared_experts=2,
        router=RouterSpec(balance=BalanceSpec(expert_loss=0.001)),
    ),
    rope=_rope(0.707),
    bos_token_id=100000,
    eos_token_id=100001,
)

_MSCALE = ("rope.scaling.mscale", "rope.scaling.mscale_all_dim")

PRESETS = (
    Preset(_V2, "DeepSeek-V2 §3.1.2, released config"),
    Preset(_V2_LITE, "DeepSeek-V2 App. B.1, released config"),
    Preset(replace(_V2, name="deepseek-v2.5", rope=_rope(1.0)), "DeepSeek-V2 §3.1.2, released V2.5 config"),
    # Coder-V2 §3.2: the hyper-parameters of V2 and V2-Lite; the released mscale of the 236B model is unconfirmed.
    Preset(replace(_V2, name="deepseek-coder-v2"), "DeepSeek-Coder-V2 §3.2", _MSCALE),
    Preset(replace(_V2_LITE, name="deepseek-coder-v2-lite"), "DeepSeek-Coder-V2 §3.2"),
)
