"""Shapes of small models, and the one that a machine can teach enough in a given time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fathom.errors import SpecError
from fathom.plan.count import count_parameters
from fathom.plan.flops import training_flops_per_token
from fathom.plan.memory import training_memory
from fathom.spec.mapping import from_mapping
from fathom.spec.model import ModelSpec

FAMILIES = ("deepseek_v2", "deepseek_v3", "deepseek", "llama")
TOKENS_PER_PARAMETER = 20
"""Training tokens for each parameter that a token uses, embeddings apart: about what is best for the time it takes
(Hoffmann et al. 2022, §3).
"""
FEWEST_TOKENS = 4
"""The same where it is the text that is short, not the time: a larger model still gains by it."""
MOST_PASSES = 8
"""Fewer than ``preflight.FEW_PASSES``; four teach almost as much as new text, further ones less and less (Muennighoff
et al. 2023).
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of one size of model."""

    hidden_size: int
    layers: int
    heads: int
    head_dim: int
    kv_lora_rank: int
    intermediate_size: int
    experts: int
    experts_per_token: int
    expert_size: int
    shared_experts: int


SHAPES: Sequence[Shape] = (
    Shape(64, 2, 4, 16, 32, 176, 8, 2, 32, 1),
    Shape(96, 3, 4, 24, 32, 256, 8, 2, 48, 1),
    Shape(128, 4, 4, 32, 48, 352, 16, 3, 48, 1),
    Shape(192, 5, 4, 48, 64, 512, 24, 4, 64, 2),
    Shape(256, 6, 4, 64, 96, 704, 32, 4, 96, 2),
    Shape(384, 8, 6, 64, 128, 1024, 32, 4, 128, 2),
    Shape(512, 10, 8, 64, 192, 1408, 48, 6, 160, 2),
    Shape(768, 12, 12, 64, 256, 2048, 64, 6, 224, 2),
    Shape(1024, 20, 16, 64, 384, 2816, 64, 6, 352, 2),
)


def vocabulary(text_bytes: int) -> int:
    """Return a vocabulary that a text of so many bytes can fill with tokens that it repeats."""
    for most, size in ((200_000, 512), (1_500_000, 1024), (8_000_000, 2048), (60_000_000, 4096), (500_000_000, 8192)):
        if text_bytes < most:
            return size
    return 32_768


def model_table(shape: Shape, *, family: str, name: str, vocab_size: int, context: int) -> dict[str, Any]:
    """Return [model] of a recipe.

    Raises:
        SpecError: a family that is not one of ``FAMILIES``.
    """
    if family not in FAMILIES:
        raise SpecError("--family", f"no template is of {family!r}", f"use one of {', '.join(FAMILIES)}")
    half = shape.head_dim // 2
    heads = {"num_heads": shape.heads}
    latent = {"kv_lora_rank": shape.kv_lora_rank, "qk_nope_head_dim": half + half % 8, "qk_rope_head_dim": 16}
    attention: dict[str, Any] = {"kind": "mla", **heads, **latent, "v_head_dim": shape.head_dim}
    if family in ("llama", "deepseek"):
        attention = {"kind": "gqa", **heads, "num_kv_heads": shape.heads, "head_dim": shape.head_dim}
    table: dict[str, Any] = {
        "name": name,
        "family": family,
        "vocab_size": vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": context,
        "initializer_range": round(min(0.06, 1 / math.sqrt(shape.hidden_size)), 3),
        "attention": attention,
    }
    if family == "llama":
        return table | {"tie_word_embeddings": True}
    router: dict[str, Any] = {"balance": {"expert_loss": 0.003}}
    if family == "deepseek_v3":
        router = {"score": "sigmoid", "normalize": True, "selection_bias": True, "balance": {"bias_update_rate": 0.001}}
    moe = {
        "n_routed_experts": shape.experts,
        "num_experts_per_tok": shape.experts_per_token,
        "moe_intermediate_size": shape.expert_size,
        "n_shared_experts": shape.shared_experts,
        "router": router,
    }
    rope = {} if family == "deepseek" else {"rope": {"layout": "interleaved"}}
    return table | {"first_k_dense_replace": 1, "moe": moe} | rope


def make_spec(table: dict[str, Any]) -> ModelSpec:
    """Return the spec of a [model] table."""
    return from_mapping(ModelSpec, table, "model")


def largest_shape(
    make: Callable[[Shape], ModelSpec],
    *,
    seconds: float,
    flops: float,
    unique_tokens: float,
    memory: int,
    batch_tokens: int,
    length: int,
) -> tuple[Shape, float]:
    """Return the largest shape that learns from enough tokens, and how many tokens those are.

    ``flops`` a second are reached in training; the model must fit into half of ``memory`` bytes. Tokens are bounded by
    the time and by ``MOST_PASSES`` over the ``unique_tokens``.
    """
    found, tokens = SHAPES[0], 0.0
    for shape in SHAPES:
        spec = make(shape)
        held = seconds * flops / training_flops_per_token(spec, length)
        reached = min(held, MOST_PASSES * unique_tokens)
        fits = training_memory(spec, tokens=batch_tokens).total < memory // 2
        count = count_parameters(spec)
        learned = count.active - count.embedding  # without embedding and output head, one matrix or two
        enough = held >= TOKENS_PER_PARAMETER * learned and reached >= FEWEST_TOKENS * learned
        if shape is not SHAPES[0] and not (fits and enough):
            break
        found, tokens = shape, reached
    return found, tokens
