"""Bench shapes T, S, M and L: DeepSeek-V2 in sizes that run on a laptop, used by benchmarks and small experiments."""

from __future__ import annotations

from dataclasses import dataclass

from fathom.families.preset import Preset
from fathom.spec import BalanceSpec, LatentAttention, MixtureOfExperts, ModelSpec, RopeSpec, RouterSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    hidden: int
    layers: int
    heads: int
    kv_lora: int
    head: tuple[int, int, int]
    experts: tuple[int, int]
    expert_width: int
    dense_width: int
    vocab: int


def _bench(letter: str, shape: _Shape) -> Preset:
    nope, rope, value = shape.head
    routed, active = shape.experts
    spec = ModelSpec(
        name=f"bench-{letter}",
        family="deepseek_v2",
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.dense_width,
        num_hidden_layers=shape.layers,
        attention=LatentAttention(
            num_heads=shape.heads,
            kv_lora_rank=shape.kv_lora,
            qk_nope_head_dim=nope,
            qk_rope_head_dim=rope,
            v_head_dim=value,
        ),
        max_position_embeddings=4096,
        first_k_dense_replace=1,
        moe=MixtureOfExperts(
            n_routed_experts=routed,
            num_experts_per_tok=active,
            moe_intermediate_size=shape.expert_width,
            n_shared_experts=2,
            router=RouterSpec(balance=BalanceSpec(expert_loss=0.001)),
        ),
        rope=RopeSpec(layout="interleaved"),
    )
    return Preset(spec, "bench shape of this project")


_T = _Shape(
    hidden=256,
    layers=6,
    heads=4,
    kv_lora=64,
    head=(32, 32, 32),
    experts=(32, 4),
    expert_width=96,
    dense_width=768,
    vocab=4096,
)
_S = _Shape(
    hidden=512,
    layers=8,
    heads=8,
    kv_lora=128,
    head=(64, 32, 64),
    experts=(32, 4),
    expert_width=256,
    dense_width=1536,
    vocab=16384,
)
_M = _Shape(
    hidden=1024,
    layers=9,
    heads=8,
    kv_lora=256,
    head=(64, 32, 64),
    experts=(64, 6),
    expert_width=512,
    dense_width=4096,
    vocab=32768,
)
_L = _Shape(
    hidden=2048,
    layers=4,
    heads=16,
    kv_lora=512,
    head=(128, 64, 128),
    experts=(64, 6),
    expert_width=1408,
    dense_width=10944,
    vocab=102400,
)

PRESETS = (_bench("t", _T), _bench("s", _S), _bench("m", _M), _bench("l", _L))
