"""DeepSeek-V3 and R1: sigmoid routing balanced by a bias, and one multi-token-prediction module."""

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

_V3 = ModelSpec(
    name="deepseek-v3",
    family="deepseek_v3",
    vocab_size=129280,
    hidden_size=7168,
    intermediate_size=18432,
    num_hidden_layers=61,
    attention=LatentAttention(
        num_heads=128,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    ),
    max_position_embeddings=163840,
    first_k_dense_replace=3,
    moe=MixtureOfExperts(
        n_routed_experts=256,
        num_experts_per_tok=8,
        moe_intermediate_size=2048,
        n_shared_experts=1,
        router=RouterSpec(
            score="sigmoid",
            select=GroupLimited(n_group=8, topk_group=4, group_score="top2_sum"),
            selection_bias=True,
            normalize=True,
            scale=2.5,
            balance=BalanceSpec(sequence_loss=1e-4, bias_update_rate=0.001),  # the rate falls to 0 after 14.3T tokens
        ),
    ),
    rope=RopeSpec(
        layout="interleaved",
        scaling=YarnScaling(factor=40.0, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=1.0),
    ),
    num_nextn_predict_layers=1,
    bos_token_id=0,
    eos_token_id=1,
)

PRESETS = (
    Preset(_V3, "DeepSeek-V3 §4.2, §4.3, released config"),
    Preset(replace(_V3, name="deepseek-r1"), "DeepSeek-R1; released config, fields identical to V3"),
)
