"""The shape of every tensor in a decoder's state, from its spec alone."""

from __future__ import annotations

from fathom.checkpoint.names.vision import vision_shapes
from fathom.spec import GroupedQueryAttention, LatentAttention, MixtureOfExperts, ModelSpec

Shape = tuple[int, ...]


def parameter_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """List the names and shapes of ``Decoder.state_dict()``: parameters and selection biases, in order.

    ``lm_head.weight`` is absent when the embedding is tied to it.
    """
    shapes: dict[str, Shape] = {"embed_tokens.weight": (spec.vocab_size, spec.hidden_size)}
    for index in range(spec.num_hidden_layers):
        shapes |= _under(f"layers.{index}", _block(spec, moe=spec.is_moe_layer(index)))
    shapes["norm.weight"] = (spec.hidden_size,)
    if not spec.tie_word_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, spec.hidden_size)
    for index in range(spec.num_nextn_predict_layers):
        shapes |= _under(f"mtp.{index}", _mtp(spec))
    if spec.vision is not None:
        shapes |= _under("vision", vision_shapes(spec.vision, spec.hidden_size))
    return shapes


def _under(prefix: str, shapes: dict[str, Shape]) -> dict[str, Shape]:
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def _mtp(spec: ModelSpec) -> dict[str, Shape]:
    d = spec.hidden_size
    head: dict[str, Shape] = {"enorm.weight": (d,), "hnorm.weight": (d,), "eh_proj.weight": (d, 2 * d)}
    return head | _under("block", _block(spec, moe=spec.moe is not None)) | {"norm.weight": (d,)}


def _block(spec: ModelSpec, *, moe: bool) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {"input_layernorm.weight": (spec.hidden_size,)}
    attention = spec.attention
    if isinstance(attention, LatentAttention):
        shapes |= _under("self_attn", _latent(spec.hidden_size, attention))
    else:
        shapes |= _under("self_attn", _grouped_query(spec.hidden_size, attention))
    shapes["post_attention_layernorm.weight"] = (spec.hidden_size,)
    if moe and spec.moe is not None:
        return shapes | _under("mlp", _experts(spec, spec.moe))
    return shapes | _under("mlp", _swiglu(spec.hidden_size, spec.intermediate_size or 0, bias=spec.mlp_bias))


def _grouped_query(hidden: int, attention: GroupedQueryAttention) -> dict[str, Shape]:
    queries = attention.num_heads * attention.head_dim
    keys = attention.num_kv_heads * attention.head_dim
    shapes: dict[str, Shape] = {}
    for name, width in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        shapes[f"{name}.weight"] = (width, hidden)
        if attention.qkv_bias:
            shapes[f"{name}.bias"] = (width,)
    shapes["o_proj.weight"] = (hidden, queries)
    return shapes | ({"o_proj.bias": (hidden,)} if attention.out_bias else {})


def _latent(hidden: int, attention: LatentAttention) -> dict[str, Shape]:
    heads, rank = attention.num_heads, attention.kv_lora_rank
    queries, latent = heads * attention.qk_head_dim, rank + attention.qk_rope_head_dim
    q_rank = attention.q_lora_rank
    shapes: dict[str, Shape] = {}
    if q_rank is None:
        shapes["q_proj.weight"] = (queries, hidden)
    else:
        shapes |= {"q_a_proj.weight": (q_rank, hidden)} | ({"q_a_proj.bias": (q_rank,)} if attention.bias else {})
        shapes |= {"q_a_layernorm.weight": (q_rank,), "q_b_proj.weight": (queries, q_rank)}
    shapes["kv_a_proj_with_mqa.weight"] = (latent, hidden)
    if attention.bias:
        shapes["kv_a_proj_with_mqa.bias"] = (latent,)
    shapes["kv_a_layernorm.weight"] = (rank,)
    shapes["kv_b_proj.weight"] = (heads * (attention.qk_nope_head_dim + attention.v_head_dim), rank)
    shapes["o_proj.weight"] = (hidden, heads * attention.v_head_dim)
    return shapes | ({"o_proj.bias": (hidden,)} if attention.bias else {})


def _swiglu(hidden: int, width: int, *, bias: bool) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {"gate_up_proj.weight": (2, width, hidden)}
    if bias:
        shapes["gate_up_proj.bias"] = (2, width)
    shapes["down_proj.weight"] = (hidden, width)
    return shapes | ({"down_proj.bias": (hidden,)} if bias else {})


def _experts(spec: ModelSpec, moe: MixtureOfExperts) -> dict[str, Shape]:
    d, e, f = spec.hidden_size, moe.n_routed_experts, moe.moe_intermediate_size
    shapes: dict[str, Shape] = {} if moe.router.score == "hash" else {"gate.weight": (e, d)}
    if moe.router.score == "noisy":
        shapes["gate.noise_weight"] = (e, d)
    if moe.router.selection_bias:
        shapes["gate.e_score_correction_bias"] = (e,)
    shapes |= {"experts.gate_up_proj": (e, 2, f, d), "experts.down_proj": (e, d, f)}
    if moe.n_shared_experts:
        shapes |= _under("shared_experts", _swiglu(d, moe.shared_intermediate_size, bias=False))
    return shapes
