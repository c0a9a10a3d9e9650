"""config.json of mixtral and deepseek (DeepSeekMoE), and the expert fields that deepseek_v2 and deepseek_v3 share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fathom.errors import SpecError
from fathom.spec.hf.common import (
    Defaults,
    grouped,
    read_common,
    read_fathom_balance,
    read_grouped,
    write_common,
    write_grouped,
)
from fathom.spec.hf.fields import MISSING, Fields
from fathom.spec.hf.rope import ConfigLayout
from fathom.spec.model import ModelSpec
from fathom.spec.moe import BalanceSpec, MixtureOfExperts, RouterSpec

_MIXTRAL: Defaults = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_16B: Defaults = {"first_k_dense_replace": 0}  # no class of transformers: sizes must be given


def read_mixtral(fields: Fields) -> dict[str, Any]:
    """Read model_type mixtral; its intermediate_size is the width of an expert."""
    common = read_common(fields, _MIXTRAL)
    window = fields.optional_integer("sliding_window")
    moe = MixtureOfExperts(
        n_routed_experts=fields.integer("num_local_experts", 8),
        num_experts_per_tok=fields.integer("num_experts_per_tok", 2),
        moe_intermediate_size=fields.integer("intermediate_size", _MIXTRAL["intermediate_size"]),
        router=RouterSpec(normalize=True, balance=read_fathom_balance(fields) or BalanceSpec()),
    )
    attention = read_grouped(fields, _MIXTRAL, common["hidden_size"], sliding_window=window)
    return common | {"attention": attention, "moe": moe}


def write_mixtral(spec: ModelSpec, layout: ConfigLayout) -> dict[str, Any]:
    """Write model_type mixtral."""
    if spec.moe is None:
        raise SpecError("moe", "family mixtral is a mixture of experts", "set moe or choose family mistral")
    return {
        **write_common(spec, "MixtralForCausalLM", layout),
        **write_grouped(spec),
        "intermediate_size": spec.moe.moe_intermediate_size,
        "num_local_experts": spec.moe.n_routed_experts,
        "num_experts_per_tok": spec.moe.num_experts_per_tok,
        "sliding_window": grouped(spec).sliding_window,
    }


def read_deepseek(fields: Fields) -> dict[str, Any]:
    """Read model_type deepseek (DeepSeekMoE): multi-head attention, softmax scores, plain top-k."""
    common = read_common(fields, _16B)
    bias = fields.flag("attention_bias", False)
    attention = read_grouped(fields, _16B, common["hidden_size"], qkv_bias=bias, out_bias=bias)
    return common | {"attention": attention} | read_experts(fields, _16B, common["num_hidden_layers"], _router_16b)


def write_deepseek(spec: ModelSpec, layout: ConfigLayout) -> dict[str, Any]:
    """Write model_type deepseek."""
    attention = grouped(spec)
    head = write_grouped(spec)
    if attention.head_dim * attention.num_heads == spec.hidden_size:
        del head["head_dim"]  # its modelling code knows no other width
    moe = spec.moe
    return {
        **write_common(spec, "DeepseekForCausalLM", layout),
        **head,
        "attention_bias": attention.qkv_bias,
        **write_experts(spec),
        **({"norm_topk_prob": moe.router.normalize, "scoring_func": "softmax"} if moe else {}),
    }


def read_experts(
    fields: Fields, defaults: Defaults, layers: int, router: Callable[[Fields], RouterSpec]
) -> dict[str, Any]:
    """Read which layers are mixtures of experts, and the experts.

    No layer is one where ``n_routed_experts`` is null or ``first_k_dense_replace`` covers them all.
    """
    first = fields.integer("first_k_dense_replace", defaults["first_k_dense_replace"])
    frequency = fields.integer("moe_layer_freq", 1)
    routed = fields.optional_integer("n_routed_experts", defaults.get("n_routed_experts"))
    shared = fields.optional_integer("n_shared_experts", defaults.get("n_shared_experts")) or 0
    for name in ("num_experts_per_tok", "moe_intermediate_size"):
        fields.raw(name)
    all_dense = routed is None or first >= layers
    all_experts = not all_dense and first == 0 and frequency == 1
    default_width = None if all_experts else defaults.get("intermediate_size")
    result: dict[str, Any] = {"intermediate_size": fields.optional_integer("intermediate_size", default_width)}
    choices = router(fields)
    if routed is None or all_dense:
        return result
    moe = MixtureOfExperts(
        n_routed_experts=routed,
        num_experts_per_tok=fields.integer("num_experts_per_tok", defaults.get("num_experts_per_tok", MISSING)),
        moe_intermediate_size=fields.integer("moe_intermediate_size", defaults.get("moe_intermediate_size", MISSING)),
        n_shared_experts=shared,
        router=choices,
    )
    return result | {"moe": moe, "first_k_dense_replace": first, "moe_layer_freq": frequency}


def write_experts(spec: ModelSpec) -> dict[str, Any]:
    """Write which layers are mixtures of experts, the experts, and the expert loss."""
    width = {} if spec.intermediate_size is None else {"intermediate_size": spec.intermediate_size}
    if spec.moe is None:
        return width | {"first_k_dense_replace": spec.num_hidden_layers + spec.num_nextn_predict_layers}
    balance = spec.moe.router.balance
    return width | {
        "first_k_dense_replace": spec.first_k_dense_replace,
        "moe_layer_freq": spec.moe_layer_freq,
        "n_routed_experts": spec.moe.n_routed_experts,
        "n_shared_experts": spec.moe.n_shared_experts,
        "num_experts_per_tok": spec.moe.num_experts_per_tok,
        "moe_intermediate_size": spec.moe.moe_intermediate_size,
        "aux_loss_alpha": balance.expert_loss,
        "seq_aux": balance.scope == "sequence",
    }


def expert_balance(fields: Fields) -> BalanceSpec:
    """Read balance settings: our own where we wrote them, else the expert loss, the only one in public code."""
    alpha, per_sequence = fields.number("aux_loss_alpha", 0.0), fields.flag("seq_aux", True)
    own = read_fathom_balance(fields)
    return own or BalanceSpec(expert_loss=alpha, scope="sequence" if per_sequence else "batch")


def _router_16b(fields: Fields) -> RouterSpec:
    fields.only("scoring_func", ("softmax", None), "deepseek gates are softmax; choose another model_type")
    fields.only("topk_method", ("greedy", None), "deepseek selects plain top-k; choose model_type deepseek_v2")
    fields.only("n_group", (1, None), "deepseek selects plain top-k; choose model_type deepseek_v2")
    fields.only("topk_group", (1, None), "deepseek selects plain top-k; choose model_type deepseek_v2")
    fields.only("routed_scaling_factor", (1, None), "deepseek gates are unscaled; choose model_type deepseek_v2")
    return RouterSpec(normalize=fields.flag("norm_topk_prob", False), balance=expert_balance(fields))
