"""Fields of config.json that no family's reader looks at, and what their values mean for the model's numbers.

Three tables. ``UNSUPPORTED`` lists fields that are known to change what a model computes, each with the values that
change nothing: any other value is refused. ``INERT`` lists fields that change no number (software, storage, training,
sampling). ``ALIASES`` lists other names of fields that are read. A field in none of them is carried and named.

Sources: the configuration and modelling classes of transformers 5 for decoder-only models, and those of vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_REMOVE = "remove it from config.json if the weights were trained without it, else choose another model"


@dataclass(frozen=True, slots=True)
class Unsupported:
    """What a field means that is not built, and the values that mean nothing; null is always one of them."""

    reason: str
    harmless: tuple[Any, ...] = ()
    remedy: str = _REMOVE


_OFF = (False, 0)
_ACTIVATION = Unsupported("only SwiGLU feed-forward layers are built", ("silu", "swish"), "choose a model with silu")
_BIAS = Unsupported("this family has no such biases", _OFF)
_NO_BIAS = Unsupported("this family has no biases", (True,))
_SOFT_CAP = Unsupported("soft caps of logits are not built", _OFF)
_MULTIPLIER = Unsupported("multipliers are not built", (1,))
_SOFTMAX_SCALE = Unsupported("only attention scaled by the root of the head width is built")
_ROTARY = Unsupported("only heads rotated as a whole are built", (1,), "choose a model without it")
_LAYER_ROPE = Unsupported("only one rotary embedding for all layers is built", _OFF)
_POSITIONS = Unsupported("only rotary positions are built", _OFF)
_WINDOW = Unsupported("this pattern of attention windows is not built", _OFF)
_SPARSE = Unsupported("only dense attention is built", _OFF)
_QK_NORM = Unsupported("normalised queries and keys are not built", _OFF)
_NORM = Unsupported("only one RMSNorm before attention and one before the feed-forward layer are built", _OFF)
_CLIP = Unsupported("clipping inside layers is not built", _OFF)
_LAYERS = Unsupported("only layers of one kind and size are built", _OFF)
_EXPERTS = Unsupported("this family has no such experts", (False, 0, 1))
_ROUTER = Unsupported("this family's router has no such step", _OFF)
_TOWER = Unsupported("this family has no such part", _OFF)
_PREDICTION = Unsupported("only deepseek_v3 has multi-token-prediction modules", _OFF)
_CODER = Unsupported("only decoder-only models are built", _OFF)
_QUANTIZED = Unsupported(
    "weights quantised this way are not read", (), "use the unquantised weights, FP8 blocks or a GGUF file"
)

UNSUPPORTED: Mapping[str, Unsupported] = {
    **dict.fromkeys(("hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act"), _ACTIVATION),
    **dict.fromkeys(
        (
            *("attention_bias", "attention_out_bias", "attention_qkv_bias", "add_bias_linear", "add_qkv_bias", "bias"),
            *("lm_head_bias", "mlp_bias", "norm_bias", "qkv_bias", "use_bias", "use_qkv_bias"),
        ),
        _BIAS,
    ),
    "no_bias": _NO_BIAS,
    **dict.fromkeys(
        (
            *("attn_logit_softcapping", "final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"),
            *("moe_router_logit_softcapping", "router_logit_softcapping"),
        ),
        _SOFT_CAP,
    ),
    **dict.fromkeys(
        (
            *("attention_in_multiplier", "attention_out_multiplier", "attention_value_scale", "embedding_multiplier"),
            *("embedding_scale", "key_multiplier", "lm_head_multiplier", "logit_scale", "logits_mup_width_multiplier"),
            *("logits_scaling", "moe_routed_scaling_factor", "residual_multiplier", "rope_ratio", "route_scale"),
            *("routed_scaling_factor", "router_scaling_factor", "scale_emb"),
        ),
        _MULTIPLIER,
    ),
    **dict.fromkeys(("mlp_multipliers", "dim_model_base", "scale_depth"), Unsupported("multipliers are not built")),
    "scale_embedding": Unsupported("multipliers are not built", _OFF),
    "mup_enabled": Unsupported("multipliers are not built", _OFF),
    "scale_attn_weights": Unsupported("only scaled attention is built", (True,)),
    **dict.fromkeys(("attention_multiplier", "attn_scale", "query_pre_attn_scalar"), _SOFTMAX_SCALE),
    **dict.fromkeys(
        ("attn_temperature_tuning", "scale_attn_by_inverse_layer_idx", "use_logn_attn"),
        Unsupported("attention scaled by position or layer is not built", _OFF),
    ),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), _ROTARY),
    "rotary_dim": Unsupported("only heads rotated as a whole are built"),
    **dict.fromkeys(
        ("rope_interleave", "rope_interleaved", "use_mem_rope"),
        Unsupported("this family pairs the halves of a head", _OFF),
    ),
    **dict.fromkeys(
        (
            *("compress_rope_theta", "layer_rope_theta", "no_rope_layer_interval", "no_rope_layers"),
            *("nope_layer_interval", "rope_local_base_freq", "swa_rope_theta", "use_dynamic_ntk"),
        ),
        _LAYER_ROPE,
    ),
    **dict.fromkeys(
        (
            *("alibi", "learned_pos_emb", "sinusoidal_embeddings", "use_alibi", "use_learned_position_embeddings"),
            *("position_bias_num_buckets", "relative_attention_num_buckets"),
        ),
        _POSITIONS,
    ),
    "position_embedding_type": Unsupported("only rotary positions are built", ("rope", "rotary")),
    **dict.fromkeys(
        (
            *("attention_chunk_size", "attention_window_size", "full_attn_idxs", "global_attn_every_n_layers"),
            *("local_attention", "sliding_window_pattern", "sliding_window_size", "use_bidirectional_attention"),
            "window_size",
        ),
        _WINDOW,
    ),
    "is_causal": Unsupported("only causal attention is built", (True,)),
    **dict.fromkeys(
        (
            *("attention_k_eq_v", "attention_sink", "attention_sinks", "index_head_dim", "index_n_heads", "index_topk"),
            *("indexer_head_dim", "indexer_n_heads", "num_kv_shared_layers", "use_attention_gate"),
        ),
        _SPARSE,
    ),
    "cla_share_factor": Unsupported("layers that share keys are not built", (0, 1, False)),
    **dict.fromkeys(("qk_l2_clip_threshold", "qk_layernorm", "qk_norm", "use_qk_layernorm", "use_qk_norm"), _QK_NORM),
    **dict.fromkeys(
        (
            *("_remove_final_layer_norm", "add_unit_offset", "apply_residual_connection_post_layernorm"),
            *("layernorm_embedding", "norm_add_unit_offset", "parallel_attn", "parallel_residual", "post_norm"),
            *("sandwich_norm", "use_parallel_residual", "use_post_norm", "use_sandwich_norm"),
        ),
        _NORM,
    ),
    "do_layer_norm_before": Unsupported("only norms before layers are built", (True,)),
    "pre_norm": Unsupported("only norms before layers are built", (True,)),
    "norm_type": Unsupported("only RMSNorm is built", ("rms", "rmsnorm", "rms_norm", "RMSNorm")),
    **dict.fromkeys(("clip_qkv", "mlp_gate_softcap", "mlp_up_softcap", "swiglu_alpha", "swiglu_limit"), _CLIP),
    **dict.fromkeys(
        (
            *("altup_num_inputs", "block_configs", "block_types", "embedding_size", "hc_mult", "hc_count"),
            *("hidden_size_per_layer_input", "hybrid_override_pattern", "intermediate_size_mlp", "laurel_rank"),
            *("layers_block_type", "num_attention_heads_per_layer", "per_layer_config", "swa_head_dim"),
            *("swa_num_attention_heads", "swa_num_key_value_heads"),
        ),
        _LAYERS,
    ),
    **dict.fromkeys(
        (
            *("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq", "moe_num_experts"),
            *("n_routed_experts", "n_shared_experts", "num_experts", "num_local_experts", "num_shared_experts"),
            "shared_expert_intermediate_size",
        ),
        _EXPERTS,
    ),
    "mlp_layer_types": Unsupported("this family's layers are not listed one by one"),
    "mlp_only_layers": _LAYERS,
    **dict.fromkeys(
        ("moe_apply_router_weight_on_input", "moe_latent_size", "use_expert_bias", "zero_expert_num"), _ROUTER
    ),
    **dict.fromkeys(("num_mtp_layers", "num_nextn_predict_layers"), _PREDICTION),
    **dict.fromkeys(
        ("audio_config", "high_res_vision_config", "image_token_id", "text_config", "vision_config"), _TOWER
    ),
    **dict.fromkeys(("add_cross_attention", "is_encoder_decoder"), _CODER),
    "pretraining_tp": Unsupported("sliced matrices are not built", (1, 0), "merge the slices and set it to 1"),
    "ep_size": Unsupported("shards of experts are not joined", (1,), "merge the expert-parallel shards, set it to 1"),
    "pruned_heads": Unsupported("pruned heads are not built"),
    **dict.fromkeys(("compression_config", "quantization"), _QUANTIZED),
}

INERT = frozenset(
    {
        *("_attn_implementation", "_name_or_path", "attn_implementation", "auto_map", "model_type"),
        "name_or_path",
        *("torch_dtype", "dtype", "transformers_version", "unsloth_version", "quantization_config"),
        *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "tokenizer_class"),
        *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "tie_last_hidden_states"),
        *("use_cache", "chunk_size_feed_forward", "max_window_layers", "cross_attention_hidden_size", "is_decoder"),
        "torchscript",
        *("attention_dropout", "router_aux_loss_coef", "router_jitter_noise", "initializer_factor"),
        *("bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id", "diversity_penalty", "do_sample"),
        *("early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id"),
        *("forced_eos_token_id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size"),
        *("num_beam_groups", "num_beams", "num_return_sequences", "output_scores", "prefix", "remove_invalid_values"),
        *("repetition_penalty", "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params"),
        *("temperature", "tf_legacy_loss", "top_k", "top_p", "typical_p", "use_bfloat16"),
    }
)
"""Fields of software, storage, training and sampling."""

ALIASES: Mapping[str, Mapping[str, str]] = {
    "deepseek_v2": {"num_experts": "n_routed_experts"},
    "deepseek_v3": {"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
    "mixtral": {"num_experts": "num_local_experts"},
}
"""For each family, other names of a field, as the ``attribute_map`` of transformers' config classes has them."""
