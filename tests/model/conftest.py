"""Tiny specs that the model's tests share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fathom.spec import (
    GroupedQueryAttention,
    LatentAttention,
    MixtureOfExperts,
    ModelSpec,
    RopeSpec,
    YarnScaling,
)

MakeSpec = Callable[..., ModelSpec]


@pytest.fixture
def latent_spec() -> MakeSpec:
    """Return a maker of V2-shaped specs: MLA, one dense layer, then experts."""

    def make(q_lora_rank: int | None = None, **fields: object) -> ModelSpec:
        return ModelSpec(
            **{
                "name": "tiny-v2",
                "family": "deepseek_v2",
                "vocab_size": 100,
                "hidden_size": 32,
                "num_hidden_layers": 3,
                "attention": LatentAttention(
                    num_heads=4,
                    q_lora_rank=q_lora_rank,
                    kv_lora_rank=16,
                    qk_nope_head_dim=8,
                    qk_rope_head_dim=4,
                    v_head_dim=6,
                ),
                "max_position_embeddings": 256,
                "intermediate_size": 48,
                "moe": MixtureOfExperts(
                    n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=16, n_shared_experts=1
                ),
                "first_k_dense_replace": 1,
                "rope": RopeSpec(
                    layout="interleaved",
                    scaling=YarnScaling(
                        factor=4.0, original_max_position_embeddings=64, mscale=0.707, mscale_all_dim=0.707
                    ),
                ),
                "initializer_range": 0.15,
            }
            | fields  # type: ignore[arg-type]
        )

    return make


@pytest.fixture
def grouped_spec() -> MakeSpec:
    """Return a maker of Mistral-shaped specs: GQA, dense, with or without a window."""

    def make(window: int | None = None, kv_heads: int = 2, **fields: object) -> ModelSpec:
        return ModelSpec(
            **{
                "name": "tiny-mistral",
                "family": "mistral",
                "vocab_size": 100,
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "attention": GroupedQueryAttention(
                    num_heads=4, num_kv_heads=kv_heads, head_dim=8, sliding_window=window, qkv_bias=True
                ),
                "max_position_embeddings": 256,
                "intermediate_size": 48,
                "initializer_range": 0.15,
            }
            | fields  # type: ignore[arg-type]
        )

    return make


@pytest.fixture(params=["mla", "mla-q", "gqa", "window"])
def spec(request: pytest.FixtureRequest, latent_spec: MakeSpec, grouped_spec: MakeSpec) -> ModelSpec:
    """Return a spec of every kind of cache."""
    made = {
        "mla": latent_spec(),
        "mla-q": latent_spec(q_lora_rank=12),
        "gqa": grouped_spec(),
        "window": grouped_spec(window=10),
    }
    return made[request.param]


@pytest.fixture
def latent(latent_spec: MakeSpec) -> ModelSpec:
    """MLA with a query latent, experts and a module that predicts ahead, wide enough for groups of 32."""
    return latent_spec(
        hidden_size=64,
        intermediate_size=96,
        attention=LatentAttention(
            num_heads=4, q_lora_rank=32, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=4, v_head_dim=24
        ),
        moe=MixtureOfExperts(n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, n_shared_experts=1),
        num_nextn_predict_layers=1,
    )
