"""A model's spec as GGUF metadata and back.

Read, a file means what llama.cpp computes with it; written, llama.cpp computes what the spec says. Where it cannot,
``conversion_warnings`` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fathom.checkpoint.gguf.keys import Architecture, Keys, Metadata, architecture, check_storable
from fathom.checkpoint.gguf.rope import read_rope, write_rope
from fathom.errors import CheckpointError, SpecError
from fathom.model.build import Shape
from fathom.spec import (
    Family,
    GroupedQueryAttention,
    GroupLimited,
    LatentAttention,
    Llama3Scaling,
    MixtureOfExperts,
    ModelSpec,
    RouterSpec,
    TopK,
)

_SOFTMAX, _SIGMOID = 1, 2
_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
_UNSUPPORTED = {"attention.causal": True, "attention.temperature_scale": 0, "use_kq_norm": False}
"""Keys that change what is computed in ways that no ModelSpec can express, and the values that change nothing."""


def spec_from_metadata(
    metadata: Mapping[str, Any], shapes: Mapping[str, Shape], rope_factors: Sequence[float] | None = None
) -> ModelSpec:
    """Read metadata into a spec.

    Args:
        metadata: all keys of the file.
        shapes: its tensors' shapes, rows first; they say which biases there are and whether the head is tied.
        rope_factors: the values of ``rope_freqs.weight``, needed where the file has that tensor.

    Raises:
        SpecError: a key is missing or mistyped, or asks for what is not built.
        CheckpointError: the token embedding, or ``rope_factors``, is missing.
    """
    keys = Keys(metadata)
    if len(shapes.get("token_embd.weight", ())) != 2:
        raise CheckpointError("token_embd.weight: is missing; get the whole file")
    if "rope_freqs.weight" in shapes and rope_factors is None:
        raise CheckpointError("rope_freqs.weight: its values are needed too; pass them as rope_factors")
    for name, harmless in _UNSUPPORTED.items():
        if keys.raw(f"{keys.architecture}.{name}") not in (None, harmless):
            raise keys.error(name, "changes what is computed", "choose a model without it")
    mla = keys.architecture == "deepseek2"
    attention = _read_latent(keys, shapes) if mla else _read_grouped(keys, shapes)
    layers = keys.integer("block_count")
    modules = keys.integer("nextn_predict_layers", 0)
    layers, modules = layers - modules, modules if f"blk.{layers - 1}.nextn.eh_proj.weight" in shapes else 0
    feed_forward = _read_feed_forward(keys, shapes, layers)
    vocabulary, hidden = shapes["token_embd.weight"]
    ids: dict[str, Any] = {attribute: keys.token_id(key) for attribute, key in _IDS.items()}
    name = keys.raw("general.name") or keys.raw("general.basename") or keys.architecture
    return ModelSpec(
        name=str(name),
        family=_family(keys, feed_forward, attention),
        vocab_size=vocabulary,
        hidden_size=keys.integer("embedding_length", hidden),
        num_hidden_layers=layers,
        attention=attention,
        max_position_embeddings=keys.integer("context_length"),
        rope=read_rope(keys, attention.rope_dim, rope_factors, mla=mla),
        rms_norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        mlp_bias="blk.0.ffn_down.bias" in shapes,
        tie_word_embeddings="output.weight" not in shapes,
        num_nextn_predict_layers=modules,
        **feed_forward,
        **{key: value for key, value in ids.items() if value is not None and value < vocabulary},
    )


def _family(keys: Keys, feed_forward: Mapping[str, Any], attention: GroupedQueryAttention | LatentAttention) -> Family:
    moe: MixtureOfExperts | None = feed_forward.get("moe")
    match keys.architecture:
        case "qwen2":
            return "qwen2"
        case "deepseek":
            return "deepseek"
        case "deepseek2":
            return "deepseek_v3" if moe is not None and moe.router.score == "sigmoid" else "deepseek_v2"
        case _:
            if moe is not None:
                return "mixtral"
            windowed = isinstance(attention, GroupedQueryAttention) and attention.sliding_window is not None
            return "mistral" if windowed else "llama"


def _read_grouped(keys: Keys, shapes: Mapping[str, Shape]) -> GroupedQueryAttention:
    heads = keys.integer("attention.head_count")
    width = keys.integer("attention.key_length", keys.integer("embedding_length") // max(heads, 1))
    for name in ("attention.value_length", "rope.dimension_count"):
        if keys.integer(name, width) != width:
            raise keys.error(name, f"is not {width} as key_length", "choose a model whose heads are rotated as a whole")
    window = keys.integer("attention.sliding_window", 0)
    return GroupedQueryAttention(
        num_heads=heads,
        num_kv_heads=keys.integer("attention.head_count_kv", heads),
        head_dim=width,
        qkv_bias="blk.0.attn_q.bias" in shapes,
        out_bias="blk.0.attn_output.bias" in shapes,
        sliding_window=window or None,
    )


def _read_latent(keys: Keys, shapes: Mapping[str, Shape]) -> LatentAttention:
    """Read MLA: since 2025 the key lengths are those of the cached latent, and the heads' own end in _mla."""
    suffix = "_mla" if "attention.key_length_mla" in keys else ""
    rope = keys.integer("rope.dimension_count")
    return LatentAttention(
        num_heads=keys.integer("attention.head_count"),
        q_lora_rank=None if "blk.0.attn_q.weight" in shapes else keys.integer("attention.q_lora_rank"),
        kv_lora_rank=keys.integer("attention.kv_lora_rank"),
        qk_nope_head_dim=keys.integer(f"attention.key_length{suffix}") - rope,
        qk_rope_head_dim=rope,
        v_head_dim=keys.integer(f"attention.value_length{suffix}"),
    )


def _read_feed_forward(keys: Keys, shapes: Mapping[str, Shape], layers: int) -> dict[str, Any]:
    width = keys.integer("feed_forward_length", 0)
    experts = keys.integer("expert_count", 0)
    leading = keys.integer("leading_dense_block_count", 0)
    if not experts or leading >= layers:
        return {"intermediate_size": width}
    if keys.architecture == "qwen2":
        raise keys.error("expert_count", "qwen2 has no experts", "convert the model again")
    if keys.architecture == "llama":
        router = RouterSpec(normalize=True)
        return {"moe": _moe(keys, experts, keys.integer("expert_feed_forward_length", width), router)}
    moe = _moe(keys, experts, keys.integer("expert_feed_forward_length"), _read_router(keys, shapes))
    dense = {"intermediate_size": width} if leading or width else {}
    return {"moe": moe, "first_k_dense_replace": leading} | dense


def _moe(keys: Keys, experts: int, width: int, router: RouterSpec) -> MixtureOfExperts:
    return MixtureOfExperts(
        n_routed_experts=experts,
        num_experts_per_tok=keys.integer("expert_used_count"),
        moe_intermediate_size=width,
        n_shared_experts=keys.integer("expert_shared_count", 0),
        router=router,
    )


def _read_router(keys: Keys, shapes: Mapping[str, Shape]) -> RouterSpec:
    gating = keys.integer("expert_gating_func", _SOFTMAX)
    if gating not in (0, _SOFTMAX, _SIGMOID):
        raise keys.error("expert_gating_func", f"{gating} is not supported", "choose a model with 1 or 2")
    groups, chosen = keys.integer("expert_group_count", 0), keys.integer("expert_group_used_count", 0)
    select: TopK | GroupLimited = TopK()
    if groups > 1:
        best = "top2_sum" if gating == _SIGMOID else "max"
        select = GroupLimited(n_group=groups, topk_group=chosen, group_score=best)  # type: ignore[arg-type]
    return RouterSpec(
        score="sigmoid" if gating == _SIGMOID else "softmax",
        select=select,
        selection_bias=any(name.endswith(".exp_probs_b.bias") for name in shapes),
        normalize=keys.flag("expert_weights_norm", False),
        scale=keys.number("expert_weights_scale", 0.0) or 1.0,
    )


def metadata_from_spec(spec: ModelSpec) -> Metadata:
    """Write a spec as metadata, ``general`` and token ids included.

    Raises:
        SpecError: llama.cpp's architecture for the family has no place for what the spec says.
    """
    arch = architecture(spec)
    _check(spec, arch)
    mla = isinstance(spec.attention, LatentAttention)
    written: Metadata = {
        "general.architecture": ("STRING", arch),
        "general.type": ("STRING", "model"),
        "general.name": ("STRING", spec.name),
        f"{arch}.block_count": ("UINT32", spec.num_hidden_layers + spec.num_nextn_predict_layers),
        f"{arch}.context_length": ("UINT32", spec.max_position_embeddings),
        f"{arch}.embedding_length": ("UINT32", spec.hidden_size),
        f"{arch}.vocab_size": ("UINT32", spec.vocab_size),
        f"{arch}.attention.layer_norm_rms_epsilon": ("FLOAT32", spec.rms_norm_eps),
        f"{arch}.rope.dimension_count": ("UINT32", spec.attention.rope_dim),
        **write_rope(spec.rope, arch, mla=mla),
        **_write_attention(spec, arch),
        **_write_feed_forward(spec, arch),
    }
    if spec.num_nextn_predict_layers:
        written[f"{arch}.nextn_predict_layers"] = ("UINT32", spec.num_nextn_predict_layers)
    for attribute, key in _IDS.items():
        value = getattr(spec, attribute)
        if value is not None and value >= 0:
            written[f"tokenizer.ggml.{key}"] = ("UINT32", value)
    return check_storable(written)


def _write_attention(spec: ModelSpec, arch: str) -> Metadata:
    """Write heads; MLA as llama.cpp runs it, one key-value head over the cached latent."""
    attention = spec.attention
    if isinstance(attention, GroupedQueryAttention):
        numbers = {
            "head_count": attention.num_heads,
            "head_count_kv": attention.num_kv_heads,
            "key_length": attention.head_dim,
            "value_length": attention.head_dim,
            **({} if attention.sliding_window is None else {"sliding_window": attention.sliding_window}),
        }
    else:
        numbers = {
            "head_count": attention.num_heads,
            "head_count_kv": 1,
            "q_lora_rank": attention.q_lora_rank or 0,  # 0 is direct queries; a missing key is refused by llama.cpp
            "kv_lora_rank": attention.kv_lora_rank,
            "key_length": attention.kv_lora_rank + attention.qk_rope_head_dim,
            "value_length": attention.kv_lora_rank,
            "key_length_mla": attention.qk_head_dim,
            "value_length_mla": attention.v_head_dim,
        }
    return {f"{arch}.attention.{name}": ("UINT32", value) for name, value in numbers.items()}


def _write_feed_forward(spec: ModelSpec, arch: str) -> Metadata:
    moe = spec.moe
    if moe is None:
        width = spec.intermediate_size or 0
        written: Metadata = {f"{arch}.feed_forward_length": ("UINT32", width)}
        if arch in ("deepseek", "deepseek2"):  # llama.cpp wants these even where no layer has experts
            written |= {
                f"{arch}.leading_dense_block_count": ("UINT32", spec.num_hidden_layers),
                f"{arch}.expert_feed_forward_length": ("UINT32", width),
                f"{arch}.expert_shared_count": ("UINT32", 0),
            }
        return written
    numbers = {"expert_count": moe.n_routed_experts, "expert_used_count": moe.num_experts_per_tok}
    if arch == "llama":
        numbers["feed_forward_length"] = moe.moe_intermediate_size
        return {f"{arch}.{name}": ("UINT32", value) for name, value in numbers.items()}
    router = moe.router
    numbers |= {
        "leading_dense_block_count": spec.first_k_dense_replace,
        "expert_feed_forward_length": moe.moe_intermediate_size,
        "expert_shared_count": moe.n_shared_experts,
        "expert_gating_func": _SIGMOID if router.score == "sigmoid" else _SOFTMAX,
    }
    if spec.intermediate_size is not None:
        numbers["feed_forward_length"] = spec.intermediate_size
    select = router.select
    if isinstance(select, GroupLimited) and select.topk_group < select.n_group:
        numbers |= {"expert_group_count": select.n_group, "expert_group_used_count": select.topk_group}
    written = {f"{arch}.{name}": ("UINT32", value) for name, value in numbers.items()}
    written[f"{arch}.expert_weights_scale"] = ("FLOAT32", router.scale)
    written[f"{arch}.expert_weights_norm"] = ("BOOL", router.normalize)
    return written


def _check(spec: ModelSpec, arch: Architecture) -> None:
    """Refuse what the architecture has no key, tensor or step for."""
    attention, moe = spec.attention, spec.moe
    latent = isinstance(attention, LatentAttention)
    bias = attention.bias if isinstance(attention, LatentAttention) else attention.out_bias
    router = RouterSpec() if moe is None else moe.router
    known = router.score in ("softmax", "sigmoid") and isinstance(router.select, TopK | GroupLimited)
    plain = known and router.score == "softmax" and not router.selection_bias
    mixtral = plain and isinstance(router.select, TopK) and router.normalize and router.scale == 1
    faults = (
        ("attention", latent != (arch == "deepseek2"), f"{attention.kind} is not what it runs"),
        ("attention", bias and arch != "llama", "it has no such bias"),
        ("mlp_bias", spec.mlp_bias and arch != "llama", "it has no such bias"),
        ("rope.scaling", isinstance(spec.rope.scaling, Llama3Scaling) and arch != "llama", "it scales otherwise"),
        ("moe", moe is not None and arch == "qwen2", "it has no experts"),
        ("moe_layer_freq", moe is not None and spec.moe_layer_freq != 1, "it has experts in every later layer"),
        (
            "num_nextn_predict_layers",
            spec.num_nextn_predict_layers > 0 and arch != "deepseek2",
            "it predicts one token",
        ),
        ("moe.router", not known, "it selects the best of softmax or sigmoid scores"),
        ("moe.router", moe is not None and arch == "llama" and not mixtral, "it takes a softmax over the best scores"),
        ("moe.router", arch == "deepseek" and not plain, "it scores by softmax, without a bias"),
        ("moe.n_shared_experts", moe is not None and arch == "llama" and moe.n_shared_experts > 0, "it has none"),
        ("first_k_dense_replace", arch == "llama" and spec.first_k_dense_replace > 0, "it has experts in every layer"),
    )
    for path, wrong, why in faults:
        if wrong:
            raise SpecError(path, f"GGUF's architecture {arch} cannot express it ({why})", "write another format")
