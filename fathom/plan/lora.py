"""The matrices that an adapter can be for, and the parameters it has, by arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fathom.spec import GroupedQueryAttention, ModelSpec
from fathom.spec.adapter import LoraSpec, fused_target, names_layer


@dataclass(frozen=True, slots=True)
class Matrix:
    """A linear layer, ``copies`` of one shape: two for gate and up, one for each expert."""

    name: str
    outputs: int
    inputs: int
    copies: int = 1


def lora_parameters(spec: ModelSpec, lora: LoraSpec) -> int:
    """Count what training an adapter learns: A and B of every matrix that it is for, and what is saved whole."""
    targets = [fused_target(target) for target in lora.targets]
    chosen = [each for each in matrices(spec) if any(names_layer(target, each.name) for target in targets)]
    low_rank = sum(each.copies * lora.rank * (each.inputs + each.outputs) for each in chosen)
    tied = spec.tie_word_embeddings
    whole = {"embed_tokens" if tied else name for name in lora.modules_to_save}
    return low_rank + len(whole) * spec.vocab_size * spec.hidden_size


def matrices(spec: ModelSpec) -> Iterator[Matrix]:
    """Yield the linear layers and experts of all decoder layers, with their paths."""
    for index in range(spec.num_hidden_layers):
        place = f"layers.{index}"
        yield from _attention(spec, f"{place}.self_attn")
        moe = spec.moe if spec.is_moe_layer(index) else None
        if moe is None:
            yield from _feed_forward(spec.hidden_size, spec.intermediate_size or 0, f"{place}.mlp")
            continue
        width = moe.moe_intermediate_size
        yield from _feed_forward(spec.hidden_size, width, f"{place}.mlp.experts", moe.n_routed_experts)
        if moe.shared_intermediate_size:
            yield from _feed_forward(spec.hidden_size, moe.shared_intermediate_size, f"{place}.mlp.shared_experts")


def _feed_forward(hidden: int, width: int, place: str, experts: int = 1) -> Iterator[Matrix]:
    yield Matrix(f"{place}.gate_up_proj", width, hidden, 2 * experts)
    yield Matrix(f"{place}.down_proj", hidden, width, experts)


def _attention(spec: ModelSpec, place: str) -> Iterator[Matrix]:
    hidden, attention = spec.hidden_size, spec.attention
    if isinstance(attention, GroupedQueryAttention):
        own, shared = attention.num_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
        yield Matrix(f"{place}.q_proj", own, hidden)
        yield Matrix(f"{place}.k_proj", shared, hidden)
        yield Matrix(f"{place}.v_proj", shared, hidden)
        yield Matrix(f"{place}.o_proj", hidden, own)
        return
    heads, queries = attention.num_heads, attention.num_heads * attention.qk_head_dim
    if attention.q_lora_rank is None:
        yield Matrix(f"{place}.q_proj", queries, hidden)
    else:
        yield Matrix(f"{place}.q_a_proj", attention.q_lora_rank, hidden)
        yield Matrix(f"{place}.q_b_proj", queries, attention.q_lora_rank)
    latent = attention.kv_lora_rank
    yield Matrix(f"{place}.kv_a_proj_with_mqa", latent + attention.qk_rope_head_dim, hidden)
    yield Matrix(f"{place}.kv_b_proj", heads * (attention.qk_nope_head_dim + attention.v_head_dim), latent)
    yield Matrix(f"{place}.o_proj", hidden, heads * attention.v_head_dim)
