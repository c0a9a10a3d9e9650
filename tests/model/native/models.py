"""Models small enough to compare step by step, one for each family and router."""

from __future__ import annotations

import dataclasses

from fathom.spec import (
    Capacity,
    GroupLimited,
    LatentAttention,
    MixtureOfExperts,
    ModelSpec,
    RouterSpec,
)
from tests.published import SPECS

_EXPERTS = MixtureOfExperts(n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=32)


def with_router(name: str, router: RouterSpec, **fields: int) -> ModelSpec:
    """V2's tiny model with another router."""
    moe = dataclasses.replace(_EXPERTS, router=router, **fields)  # type: ignore[arg-type]
    return dataclasses.replace(SPECS["tiny-deepseek_v2"], name=name, moe=moe)


ROUTERS = (
    with_router("noisy", RouterSpec(score="noisy", normalize=True)),
    with_router("hash", RouterSpec(score="hash", scale=1.5), num_experts_per_tok=1),
    with_router("groups", RouterSpec(select=GroupLimited(n_group=4, topk_group=2), scale=16.0), n_shared_experts=2),
    with_router("capacity", RouterSpec(select=Capacity(capacity_factor=1.0, eval_capacity_factor=0.75))),
)
# Whole groups of 32 columns in every matrix, so that all of them can be quantized.
WIDE = dataclasses.replace(
    SPECS["tiny-deepseek_v3"],
    name="wide",
    attention=LatentAttention(
        num_heads=2, q_lora_rank=32, kv_lora_rank=32, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32
    ),
)
ALL = {spec.name: spec for spec in (*SPECS.values(), *ROUTERS, WIDE)}
