"""Hugging Face tensor names of each family.

A table maps a parameter's name within one decoder layer to the Hugging Face names it is made of, in row order;
``{e}`` in a Hugging Face name means one such set per expert, stacked along the parameter's first dimension. What a
table does not list, the family cannot store.

Sources: the released checkpoints' indices; DeepSeek-V3 README_WEIGHTS for multi-token prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fathom.spec import Family

Table = Mapping[str, tuple[str, ...]]


def _same(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: (name,) for name in names}


def _frozen(*tables: Table) -> Table:
    return MappingProxyType({param_name: published for table in tables for param_name, published in table.items()})


OUTSIDE = _frozen(
    {
        "embed_tokens.weight": ("model.embed_tokens.weight",),
        "norm.weight": ("model.norm.weight",),
        "lm_head.weight": ("lm_head.weight",),
    }
)
"""Tensors outside the layers; the same names in every family."""

_NORMS = _same("input_layernorm.weight", "post_attention_layernorm.weight")
_GQA = _same(*(f"self_attn.{name}_proj.weight" for name in "qkvo"))
_QKV_BIAS = _same(*(f"self_attn.{name}_proj.bias" for name in "qkv"))
_OUT_BIAS = _same("self_attn.o_proj.bias")
_DIRECT_QUERY = _same("self_attn.q_proj.weight")
_MLA = _DIRECT_QUERY | _same(
    "self_attn.q_a_proj.weight",
    "self_attn.q_a_proj.bias",
    "self_attn.q_a_layernorm.weight",
    "self_attn.q_b_proj.weight",
    "self_attn.kv_a_proj_with_mqa.weight",
    "self_attn.kv_a_proj_with_mqa.bias",
    "self_attn.kv_a_layernorm.weight",
    "self_attn.kv_b_proj.weight",
    "self_attn.o_proj.weight",
    "self_attn.o_proj.bias",
)
_DENSE = {
    "mlp.gate_up_proj.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.down_proj.weight": ("mlp.down_proj.weight",),
}
_DENSE_BIAS = {
    "mlp.gate_up_proj.bias": ("mlp.gate_proj.bias", "mlp.up_proj.bias"),
    "mlp.down_proj.bias": ("mlp.down_proj.bias",),
}
_EXPERTS = {
    "mlp.gate.weight": ("mlp.gate.weight",),
    "mlp.experts.gate_up_proj": ("mlp.experts.{e}.gate_proj.weight", "mlp.experts.{e}.up_proj.weight"),
    "mlp.experts.down_proj": ("mlp.experts.{e}.down_proj.weight",),
    "mlp.shared_experts.gate_up_proj.weight": (
        "mlp.shared_experts.gate_proj.weight",
        "mlp.shared_experts.up_proj.weight",
    ),
    "mlp.shared_experts.down_proj.weight": ("mlp.shared_experts.down_proj.weight",),
}
_MIXTRAL_EXPERTS = {
    "mlp.gate.weight": ("block_sparse_moe.gate.weight",),
    "mlp.experts.gate_up_proj": (
        "block_sparse_moe.experts.{e}.w1.weight",
        "block_sparse_moe.experts.{e}.w3.weight",
    ),
    "mlp.experts.down_proj": ("block_sparse_moe.experts.{e}.w2.weight",),
}

LAYERS: Mapping[Family, Table] = MappingProxyType(
    {
        "llama": _frozen(_NORMS, _GQA, _QKV_BIAS, _OUT_BIAS, _DENSE, _DENSE_BIAS),
        "qwen2": _frozen(_NORMS, _GQA, _QKV_BIAS, _DENSE),
        "mistral": _frozen(_NORMS, _GQA, _DENSE),
        "mixtral": _frozen(_NORMS, _GQA, _MIXTRAL_EXPERTS),
        "deepseek": _frozen(_NORMS, _GQA, _QKV_BIAS, _OUT_BIAS, _DENSE, _EXPERTS),
        "deepseek_v2": _frozen(_NORMS, _MLA, _DENSE, _EXPERTS),
        "deepseek_v3": _frozen(_NORMS, _MLA, _DENSE, _EXPERTS, _same("mlp.gate.e_score_correction_bias")),
        "deepseek_vl": _frozen(),
        "deepseek_vl_hybrid": _frozen(),
    }
)
"""Tensors within one decoder layer, published under ``model.layers.N.``; vision families have names of their own."""

MTP: Mapping[Family, Table] = MappingProxyType(
    {
        "deepseek_v3": _frozen(
            _same("enorm.weight", "hnorm.weight", "eh_proj.weight"), {"norm.weight": ("shared_head.norm.weight",)}
        )
    }
)
"""Tensors of one multi-token-prediction module beside its block, both published as layer num_hidden_layers + K.

``eh_proj`` multiplies [embedding; hidden state], as the released weights do (V3 eq 21 prints them the other way).
"""
