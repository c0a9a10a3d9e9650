"""Parameters of a model by arithmetic, without building it."""

from __future__ import annotations

from dataclasses import dataclass

from fathom.spec import GroupedQueryAttention, ModelSpec
from fathom.spec.attention import Attention
from fathom.spec.moe import MixtureOfExperts
from fathom.spec.vision import SamSpec, SiglipSpec, VisionSpec


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Parameter counts of a model.

    ``total`` is everything but the multi-token-prediction modules, which are ``mtp``, and the vision towers with their
    connector, which are ``vision``. ``active`` is what one token
    multiplies with or adds: all of ``total`` but the experts it is not sent to and the input embedding, of which it
    reads one row; ``active_with_embedding`` counts that too. With tied embeddings the one matrix is the output head
    and is counted once everywhere. Routing biases count.
    """

    total: int
    active: int
    active_with_embedding: int
    embedding: int
    mtp: int
    vision: int = 0


def short_count(count: float) -> str:
    """Write a count of parameters in three digits: 16.1M, 236B."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size * 0.9995:
            return f"{count / size:#.3g}".rstrip(".") + letter
    return str(count)


def count_parameters(spec: ModelSpec) -> ParameterCount:
    """Count the parameters of a model and those one token uses.

    ``total``, ``mtp`` and ``vision`` together are the sum over the built model's parameters (and routing biases).
    """
    layers = range(spec.num_hidden_layers)
    embedding = spec.vocab_size * spec.hidden_size
    head = 0 if spec.tie_word_embeddings else embedding
    idle = sum(idle_expert_parameters(spec, i) for i in layers)
    total = embedding + head + spec.hidden_size + sum(layer_parameters(spec, i) for i in layers)
    with_embedding = total - idle
    return ParameterCount(
        total=total,
        active=with_embedding - (0 if spec.tie_word_embeddings else embedding),
        active_with_embedding=with_embedding,
        embedding=embedding,
        mtp=sum(mtp_parameters(spec, k) for k in range(spec.num_nextn_predict_layers)),
        vision=0 if spec.vision is None else vision_parameters(spec.vision, spec.hidden_size),
    )


def layer_parameters(spec: ModelSpec, index: int) -> int:
    """Count one decoder layer: two norms, attention, and its dense or mixture-of-experts feed-forward part."""
    width = spec.hidden_size
    return 2 * width + attention_parameters(spec.attention, width) + feed_forward_parameters(spec, index)


def attention_parameters(attention: Attention, hidden_size: int) -> int:
    """Count one attention layer: projections, their biases, and the norms on MLA's latents (V2 §2.1, App. C)."""
    if isinstance(attention, GroupedQueryAttention):
        queries = attention.num_heads * attention.head_dim
        qkv = queries + 2 * attention.num_kv_heads * attention.head_dim
        bias = (qkv if attention.qkv_bias else 0) + (hidden_size if attention.out_bias else 0)
        return hidden_size * (qkv + queries) + bias
    heads, latent = attention.num_heads, attention.kv_lora_rank
    query_rank = attention.q_lora_rank
    queries = heads * attention.qk_head_dim
    query = hidden_size * queries if query_rank is None else query_rank * (hidden_size + 1 + queries)
    down = hidden_size * (latent + attention.qk_rope_head_dim)
    up = latent * heads * (attention.qk_nope_head_dim + attention.v_head_dim)
    out = heads * attention.v_head_dim * hidden_size
    bias = (query_rank or 0) + latent + attention.qk_rope_head_dim + hidden_size if attention.bias else 0
    return query + down + latent + up + out + bias


def feed_forward_parameters(spec: ModelSpec, index: int) -> int:
    """Count the feed-forward part of decoder layer ``index``: SwiGLU, or router with routed and shared experts."""
    width, moe = spec.hidden_size, spec.moe
    if moe is None or not spec.is_moe_layer(index):
        inner = spec.intermediate_size or 0
        return 3 * width * inner + (2 * inner + width if spec.mlp_bias else 0)
    matrices = {"hash": 0, "noisy": 2}.get(moe.router.score, 1)
    router = moe.n_routed_experts * (matrices * width + (1 if moe.router.selection_bias else 0))
    routed = moe.n_routed_experts * expert_parameters(moe, width)
    return router + routed + 3 * width * moe.shared_intermediate_size


def expert_parameters(moe: MixtureOfExperts, hidden_size: int) -> int:
    """Count one routed expert: gate, up and down projection."""
    return 3 * hidden_size * moe.moe_intermediate_size


def idle_expert_parameters(spec: ModelSpec, index: int) -> int:
    """Count the routed experts of decoder layer ``index`` that one token is not sent to."""
    if spec.moe is None or not spec.is_moe_layer(index):
        return 0
    idle = spec.moe.n_routed_experts - spec.moe.num_experts_per_tok
    return idle * expert_parameters(spec.moe, spec.hidden_size)


def mtp_parameters(spec: ModelSpec, depth: int) -> int:
    """Count one multi-token-prediction module's own parameters: three norms, eh_proj and a decoder layer.

    The embedding and the head are the main model's (V3 §2.2).
    """
    width = spec.hidden_size
    return 3 * width + 2 * width * width + layer_parameters(spec, spec.num_hidden_layers + depth)


def vision_parameters(vision: VisionSpec, hidden_size: int) -> int:
    """Count the towers and the connector to a language model of ``hidden_size``; a pooling head counts."""
    width, low, high = hidden_size, vision.low, vision.high
    out = width * width + width
    if high is None:
        return siglip_parameters(low) + low.hidden_size * width + width + out
    halves = (low.hidden_size + 4 * high.output_channels) * (width // 2) + 2 * (width // 2)
    return siglip_parameters(low) + sam_parameters(high) + halves + out


def siglip_parameters(tower: SiglipSpec) -> int:
    """Count a SigLIP tower; its pooling head is a probe and one more layer with a single norm."""
    width, inner = tower.hidden_size, tower.intermediate_size
    layer = _transformer_layer(width, inner)
    around = width * (3 * tower.patch_size**2 + 1) + tower.grid**2 * width + 2 * width
    head = width + layer - 2 * width if tower.vision_use_head else 0
    return around + tower.num_hidden_layers * layer + head


def sam_parameters(tower: SamSpec) -> int:
    """Count a SAM tower with DeepSeek-VL's second neck, two strided convolutions and their weight."""
    width, channels, globally = tower.hidden_size, tower.output_channels, len(tower.global_attn_indexes)
    around = width * (3 * tower.patch_size**2 + 1) + tower.grid**2 * width
    distances = globally * (2 * tower.grid - 1)
    distances += (tower.num_hidden_layers - globally) * (2 * tower.window_size - 1)
    relative = 2 * distances * (width // tower.num_attention_heads) if tower.use_rel_pos else 0
    neck = channels * width + 9 * channels**2 + 4 * channels
    strided = 9 * channels * 2 * channels + 9 * 2 * channels * 4 * channels
    layers = tower.num_hidden_layers * _transformer_layer(width, tower.mlp_dim)
    return around + layers + relative + 2 * neck + strided + 1


def _transformer_layer(width: int, inner: int) -> int:
    """Count a layer of a vision transformer: two norms, four projections and an MLP, all with biases."""
    return 4 * width + 4 * (width * width + width) + 2 * width * inner + inner + width
