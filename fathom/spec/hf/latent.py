"""config.json of the families with latent attention: deepseek_v2 and deepseek_v3."""

from __future__ import annotations

from typing import Any

from fathom.errors import SpecError
from fathom.spec.attention import LatentAttention
from fathom.spec.hf.common import Defaults, check_windows, read_common, read_fathom_balance, read_heads, write_common
from fathom.spec.hf.experts import expert_balance, read_experts, write_experts
from fathom.spec.hf.fields import Fields
from fathom.spec.hf.rope import ConfigLayout
from fathom.spec.model import ModelSpec
from fathom.spec.moe import BalanceSpec, GroupLimited, RouterSpec, TopK
from fathom.spec.rope import RopeLayout

_V2: Defaults = {
    "vocab_size": 102400,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "first_k_dense_replace": 0,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "moe_intermediate_size": 1407,
}
_V3: Defaults = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "max_position_embeddings": 4096,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "first_k_dense_replace": 3,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
}


def read_v2(fields: Fields) -> dict[str, Any]:
    """Read model_type deepseek_v2: MLA, softmax scores, plain or device-limited top-k."""
    fields.only("rope_interleave", (True, None), "deepseek_v2 checkpoints pair neighbouring columns; set it to true")
    common = read_common(fields, _V2, "interleaved")
    experts = read_experts(fields, _V2, common["num_hidden_layers"], _router_v2)
    return common | {"attention": _read_latent(fields, _V2)} | experts


def write_v2(spec: ModelSpec, layout: ConfigLayout) -> dict[str, Any]:
    """Write model_type deepseek_v2."""
    written = {
        **write_common(spec, "DeepseekV2ForCausalLM", layout),
        **_write_latent(spec, layout),
        **write_experts(spec),
    }
    if spec.moe is None:
        return written
    select = spec.moe.router.select
    limited = isinstance(select, GroupLimited)
    return written | {
        "topk_method": "group_limited_greedy" if limited else "greedy",
        "n_group": select.n_group if isinstance(select, GroupLimited) else 1,
        "topk_group": select.topk_group if isinstance(select, GroupLimited) else 1,
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "routed_scaling_factor": spec.moe.router.scale,
    }


def read_v3(fields: Fields) -> dict[str, Any]:
    """Read model_type deepseek_v3: MLA, sigmoid scores with a selection bias, node-limited top-k, MTP modules."""
    layout: RopeLayout = "interleaved" if fields.flag("rope_interleave", True) else "half"
    common = read_common(fields, _V3, layout)
    experts = read_experts(fields, _V3, common["num_hidden_layers"], _router_v3)
    depth = fields.integer("num_nextn_predict_layers", 1)
    return common | {"attention": _read_latent(fields, _V3), "num_nextn_predict_layers": depth} | experts


def write_v3(spec: ModelSpec, layout: ConfigLayout) -> dict[str, Any]:
    """Write model_type deepseek_v3."""
    written = {
        **write_common(spec, "DeepseekV3ForCausalLM", layout),
        **_write_latent(spec, layout),
        **write_experts(spec),
        "rope_interleave": spec.rope.layout == "interleaved",
        "num_nextn_predict_layers": spec.num_nextn_predict_layers,
    }
    if spec.moe is None:
        return written
    select, balance = spec.moe.router.select, spec.moe.router.balance
    return written | {
        "topk_method": "noaux_tc",
        "n_group": select.n_group if isinstance(select, GroupLimited) else 1,
        "topk_group": select.topk_group if isinstance(select, GroupLimited) else 1,
        "scoring_func": "sigmoid",
        "norm_topk_prob": spec.moe.router.normalize,
        "routed_scaling_factor": spec.moe.router.scale,
        "aux_loss_alpha": balance.sequence_loss,
        "seq_aux": True,
    }


def _read_latent(fields: Fields, defaults: Defaults) -> LatentAttention:
    heads = read_heads(fields, defaults)
    fields.only("num_key_value_heads", (heads, None), f"latent attention has no fewer KV heads; set it to {heads}")
    fields.raw("head_dim")  # transformers writes both, and derives them from the others
    fields.raw("qk_head_dim")
    check_windows(fields, defaults, None)
    return LatentAttention(
        num_heads=heads,
        q_lora_rank=fields.optional_integer("q_lora_rank", 1536),
        kv_lora_rank=fields.integer("kv_lora_rank", 512),
        qk_nope_head_dim=fields.integer("qk_nope_head_dim", 128),
        qk_rope_head_dim=fields.integer("qk_rope_head_dim", 64),
        v_head_dim=fields.integer("v_head_dim", 128),
        bias=fields.flag("attention_bias", False),
    )


def _write_latent(spec: ModelSpec, layout: ConfigLayout) -> dict[str, Any]:
    attention = spec.attention
    if not isinstance(attention, LatentAttention):
        raise SpecError(
            "attention", f"family {spec.family} has no {attention.kind} attention", "choose family llama or deepseek"
        )
    derived = {"head_dim": attention.qk_rope_head_dim, "qk_head_dim": attention.qk_head_dim}
    return {
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_heads,
        "q_lora_rank": attention.q_lora_rank,
        "kv_lora_rank": attention.kv_lora_rank,
        "qk_nope_head_dim": attention.qk_nope_head_dim,
        "qk_rope_head_dim": attention.qk_rope_head_dim,
        "v_head_dim": attention.v_head_dim,
        "attention_bias": attention.bias,
        **(derived if layout == "transformers5" else {}),
    }


def _router_v2(fields: Fields) -> RouterSpec:
    fields.only("scoring_func", ("softmax", None), "deepseek_v2 gates are softmax; choose model_type deepseek_v3")
    fields.only("norm_topk_prob", (False, None), "readers of deepseek_v2 disagree on its meaning; set it to false")
    method = fields.word("topk_method", "greedy")
    groups, chosen = fields.optional_integer("n_group"), fields.optional_integer("topk_group")
    if method not in ("greedy", "group_limited_greedy"):
        raise SpecError("topk_method", f"{method!r} is not one of deepseek_v2's", "use greedy or group_limited_greedy")
    select: TopK | GroupLimited = TopK()
    if method == "group_limited_greedy":
        if groups is None or chosen is None:
            raise SpecError("n_group", "group_limited_greedy needs n_group and topk_group", "set both")
        select = GroupLimited(n_group=groups, topk_group=chosen, group_score="max")
    return RouterSpec(select=select, scale=fields.number("routed_scaling_factor", 1.0), balance=expert_balance(fields))


def _router_v3(fields: Fields) -> RouterSpec:
    fields.only("scoring_func", ("sigmoid", None), "deepseek_v3 gates are sigmoid; choose model_type deepseek_v2")
    fields.only("topk_method", ("noaux_tc", None), "deepseek_v3 selects by noaux_tc; choose model_type deepseek_v2")
    groups, chosen = fields.integer("n_group", 8), fields.integer("topk_group", 4)
    alpha = fields.number("aux_loss_alpha", 0.0)
    fields.raw("seq_aux")
    return RouterSpec(
        score="sigmoid",
        select=TopK() if groups == 1 else GroupLimited(n_group=groups, topk_group=chosen, group_score="top2_sum"),
        selection_bias=True,
        normalize=fields.flag("norm_topk_prob", True),
        scale=fields.number("routed_scaling_factor", 2.5),
        balance=read_fathom_balance(fields) or BalanceSpec(sequence_loss=alpha),
    )
