"""Tiny models of every family that GGUF holds, random but far from symmetric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fathom.model import Decoder, build
from fathom.model.build import parameter_shapes
from fathom.spec import (
    GroupedQueryAttention,
    GroupLimited,
    LatentAttention,
    LinearScaling,
    Llama3Scaling,
    MixtureOfExperts,
    ModelSpec,
    RopeSpec,
    RouterSpec,
    YarnScaling,
)

YARN = YarnScaling(factor=4.0, original_max_position_embeddings=32, mscale=0.707, mscale_all_dim=0.707)


def _spec(family: str, **fields: Any) -> ModelSpec:
    grouped = GroupedQueryAttention(num_heads=4, num_kv_heads=2, head_dim=16, qkv_bias=family == "qwen2")
    latent = LatentAttention(
        num_heads=4, q_lora_rank=24, kv_lora_rank=32, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=24
    )
    mla = family in ("deepseek_v2", "deepseek_v3")
    rope = RopeSpec(theta=100.0, layout="interleaved", scaling=YARN) if mla else RopeSpec()
    usual: dict[str, Any] = {
        "name": f"tiny-{family}",
        "family": family,
        "vocab_size": 96,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "intermediate_size": 96,
        "max_position_embeddings": 256,
        "attention": latent if mla else grouped,
        "rope": rope,
        "first_k_dense_replace": int("moe" in fields and family != "mixtral"),
    }
    return ModelSpec(**(usual | fields))


def _experts(**fields: Any) -> MixtureOfExperts:
    usual = {"n_routed_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "n_shared_experts": 2}
    return MixtureOfExperts(**(usual | fields))


def _specs() -> dict[str, ModelSpec]:
    v3 = _experts(
        n_shared_experts=1,
        router=RouterSpec(
            score="sigmoid",
            select=GroupLimited(n_group=4, topk_group=2, group_score="top2_sum"),
            selection_bias=True,
            normalize=True,
            scale=2.5,
        ),
    )
    full = replace(YARN, mscale=1.0, mscale_all_dim=1.0)
    mixtral = _experts(n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=0, router=RouterSpec(normalize=True))
    v2 = _spec("deepseek_v2", moe=_experts(router=RouterSpec(scale=16.0)))
    biased = GroupedQueryAttention(num_heads=4, num_kv_heads=2, head_dim=16, qkv_bias=True, out_bias=True)
    windowed = GroupedQueryAttention(num_heads=4, num_kv_heads=2, head_dim=16, sliding_window=24)
    return {
        "llama": _spec("llama"),
        "llama biased and tied": _spec("llama", attention=biased, mlp_bias=True, tie_word_embeddings=True),
        "llama linear": _spec("llama", rope=RopeSpec(theta=100_000.0, scaling=LinearScaling(factor=4.0))),
        "llama 3": _spec(
            "llama", rope=RopeSpec(theta=500.0, scaling=Llama3Scaling(factor=4.0, original_max_position_embeddings=32))
        ),
        "llama yarn": _spec(
            "llama", rope=RopeSpec(theta=100.0, scaling=replace(YARN, mscale=None, mscale_all_dim=None))
        ),
        "mistral": _spec("mistral", attention=windowed),
        "mixtral": _spec("mixtral", moe=mixtral, intermediate_size=None),
        "qwen2": _spec("qwen2"),
        "deepseek": _spec("deepseek", moe=_experts()),
        "deepseek_v2": v2,
        "deepseek_v2 lite": replace(v2, attention=replace(v2.attention, q_lora_rank=None)),
        "deepseek_v2 dense": _spec("deepseek_v2"),
        "deepseek_v2 in halves": replace(v2, rope=replace(v2.rope, layout="half")),
        "deepseek_v3": _spec("deepseek_v3", moe=v3, rope=RopeSpec(theta=100.0, layout="interleaved", scaling=full)),
        "deepseek_v3 with MTP": _spec(
            "deepseek_v3",
            moe=v3,
            rope=RopeSpec(theta=100.0, layout="interleaved", scaling=full),
            num_nextn_predict_layers=1,
        ),
    }


SPECS = _specs()


@pytest.fixture(params=sorted(SPECS))
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    """Every model in turn."""
    return SPECS[request.param]


@pytest.fixture
def spec_of() -> Callable[[str], ModelSpec]:
    """Return a model by name."""
    return SPECS.__getitem__


@pytest.fixture
def random_state() -> Callable[[ModelSpec], dict[str, Tensor]]:
    """Return a maker of states in which every tensor, norms and biases too, is random."""

    def make(spec: ModelSpec, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.randn(shape, generator=generator) for name, shape in parameter_shapes(spec).items()}

    return make


@pytest.fixture
def random_model() -> Callable[[ModelSpec], Decoder]:
    """Return a maker of models whose logits depend on every tensor."""

    def make(spec: ModelSpec) -> Decoder:
        model = build(replace(spec, initializer_range=0.15)).eval()
        torch.manual_seed(0)
        for name, tensor in model.state_dict().items():
            if tensor.dim() == 1:
                tensor.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.3)
        return model

    return make
