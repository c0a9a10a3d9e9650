import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fathom.errors import SpecError
from fathom.families import preset
from fathom.spec import GroupedQueryAttention, GroupLimited, ModelSpec, RopeSpec, RouterSpec, YarnScaling
from fathom.spec.hf import spec_from_hf, spec_to_hf

RELEASED = Path(__file__).parent / "released"


def released(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((RELEASED / f"{name}.json").read_text())
    return config


YARN = released("deepseek-v2")["rope_scaling"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mistral-7b", {"model_type": "gpt2"}, "model_type: 'gpt2' is not supported"),
        ("mistral-7b", {"model_type": ["llama"]}, "model_type: .* is not supported"),
        ("mistral-7b", {"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported"),
        ("mistral-7b", {"partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5"),
        ("deepseek-llm-7b", {"pretraining_tp": 4}, "pretraining_tp: 4 .*merge"),
        ("deepseek-v2", {"ep_size": 8}, "ep_size: 8 .*merge"),
        ("mistral-7b", {"hidden_size": "4096"}, "hidden_size: expected a whole number"),
        ("mistral-7b", {"hidden_size": True}, "hidden_size: expected a whole number"),
        ("mistral-7b", {"rms_norm_eps": "tiny"}, "rms_norm_eps: expected a number"),
        ("mistral-7b", {"tie_word_embeddings": 1}, "tie_word_embeddings: expected true or false"),
        ("mistral-7b", {"bos_token_id": "<s>"}, "bos_token_id: expected a token id"),
        ("mistral-7b", {"eos_token_id": 32000}, "eos_token_id: 32000 is outside the vocabulary"),
        ("mistral-7b", {"num_attention_heads": 0}, "num_attention_heads: must be above 0"),
        ("mistral-7b", {"num_key_value_heads": 5}, "num_attention_heads: 32 is not a multiple of 5"),
        ("mistral-7b", {"num_attention_heads": 24}, "hidden_size: 4096 is not a multiple of 24"),
        ("mistral-7b", {"model_type": None}, "model_type: None is not supported; choose a model of llama, "),
        ("mistral-7b", {"final_logit_softcapping": 30.0}, "final_logit_softcapping: 30.0 is not supported, for soft"),
        ("mistral-7b", {"sliding_window": 64, "use_sliding_window": False}, "use_sliding_window: False contradicts"),
        (
            "mistral-7b",
            {"layer_types": ["full_attention"] * 32},
            "layer_types: is .*all layers of this family are slid",
        ),
        ("deepseek-llm-7b", {"sliding_window": 1024}, "sliding_window: 1024 is not supported.* null if"),
        ("deepseek-v3", {"sliding_window": 1024}, "sliding_window: 1024 is not supported"),
        ("deepseek-v3", {"layer_types": ["sliding_attention"]}, "layer_types: is .*are full_attention"),
        ("deepseek-v3", {"num_mtp_layers": 3}, "num_mtp_layers: 3 contradicts num_nextn_predict_layers 1"),
        ("mixtral-8x7b", {"num_experts": 9}, "num_experts: 9 contradicts num_local_experts 8"),
        ("mistral-7b", {"rope_scaling": "yarn"}, "rope_scaling: expected a table"),
        ("mistral-7b", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type: 'dynamic'"),
        ("mistral-7b", {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor: is missing"),
        ("mistral-7b", {"rope_scaling": {"type": "linear", "rope_type": "yarn"}}, "rope_type: 'yarn' contradicts"),
        (
            "mistral-7b",
            {"rope_scaling": {"factor": 2.0}},
            "rope_scaling.factor: 2.0 is not supported; say in rope_type",
        ),
        (
            "mistral-7b",
            {"rope_scaling": {"type": "linear", "factor": 2.0, "attn_factor": 2}},
            "rope_scaling.attn_factor",
        ),
        (
            "mistral-7b",
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "rope_parameters.full_attention: rotations by kind of layer",
        ),
        ("deepseek-v2", {"rope_scaling": {**YARN, "factor": -1}}, "factor: must be above 0"),
        (
            "mistral-7b",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
            "rope_parameters.partial_rotary_factor: 0.25",
        ),
        (
            "deepseek-v2",
            {"rope_parameters": {"rope_type": "default"}},
            "rope_scaling: rope_parameters is given too",
        ),
        ("deepseek-r1-distill-qwen-7b", {"use_sliding_window": True, "max_window_layers": 7}, "max_window_layers: a"),
        ("deepseek-r1-distill-qwen-7b", {"layer_types": ["full_attention"]}, "layer_types: a sliding window on some"),
        ("deepseek-v2", {"scoring_func": "sigmoid"}, "scoring_func: 'sigmoid'.*deepseek_v3"),
        ("deepseek-v2", {"topk_method": "noaux_tc"}, "topk_method: 'noaux_tc'.*greedy"),
        ("deepseek-v2", {"norm_topk_prob": True}, "norm_topk_prob: True"),
        ("deepseek-v2", {"n_group": None}, "n_group: group_limited_greedy needs"),
        ("deepseek-v2", {"n_group": 7}, "n_routed_experts: 160 is not a multiple of 7"),
        ("deepseek-v2", {"num_key_value_heads": 8}, "num_key_value_heads: 8 is not supported"),
        ("deepseek-v2", {"rope_interleave": False}, "rope_interleave: False"),
        ("deepseek-v2", {"mlp_bias": True}, "mlp_bias: True"),
        ("deepseek-v2", {"num_experts_per_tok": None}, "num_experts_per_tok: is missing"),
        ("deepseek-v2", {"num_experts_per_tok": 61}, "num_experts_per_tok: 61 experts per token but only 60"),
        ("deepseek-v3", {"topk_method": "greedy"}, "topk_method: 'greedy'"),
        ("deepseek-v3", {"scoring_func": "softmax"}, "scoring_func: 'softmax'"),
        ("deepseek-moe-16b", {"routed_scaling_factor": 16.0}, "routed_scaling_factor: 16.0"),
        ("deepseek-moe-16b", {"topk_method": "group_limited_greedy"}, "topk_method: 'group_limited_greedy'"),
        ("deepseek-moe-16b", {"hidden_size": None}, "hidden_size: is missing"),
        ("deepseek-moe-16b", {"intermediate_size": None}, "intermediate_size: some layers are dense"),
        ("deepseek-v2", {"fathom": {"balance": {"devises": 8}}}, r"fathom.balance.devises: unknown field"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused_by_field_and_remedy(
    name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        spec_from_hf(released(name) | changes)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_something_other_than_a_table_is_refused() -> None:
    with pytest.raises(SpecError, match=r"config\.json: expected a table"):
        spec_from_hf([])  # type: ignore[arg-type]


@pytest.mark.parametrize("empty", [None, False, "", [], {}])
def test_an_unknown_field_that_says_nothing_is_carried(empty: Any) -> None:
    config = released("mistral-7b") | {"brand_new": empty}
    read = spec_from_hf(config)
    assert spec_to_hf(read.spec, read.carried) == config


def test_unknown_fields_are_carried_and_named() -> None:
    config = released("mistral-7b") | {"n_new_things": 0, "brand_new": {"deep": [1]}, "nothing": None}
    config["rope_scaling"] = {"type": "linear", "factor": 2.0, "finetuned": True}
    read = spec_from_hf(config)
    assert read.unknown == ("n_new_things", "brand_new", "rope_scaling.finetuned")
    assert spec_to_hf(read.spec, read.carried) == config


def test_training_time_settings_are_carried() -> None:
    config = released("mixtral-8x7b") | {"attention_dropout": 0.1, "router_jitter_noise": 0.01}
    read = spec_from_hf(config)
    assert spec_to_hf(read.spec, read.carried) == config


_LLAMA, _V2, _V3 = preset("deepseek-llm-7b"), preset("bench-t"), preset("deepseek-v3")
assert isinstance(_LLAMA.attention, GroupedQueryAttention)
assert _V2.moe is not None
assert _V3.moe is not None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (replace(_LLAMA, family="deepseek_v2"), "attention: family deepseek_v2 has no gqa attention"),
        (replace(_V2, family="llama"), "attention: family llama has no mla attention"),
        (replace(_LLAMA, family="mixtral"), "moe: family mixtral is a mixture of experts"),
        (replace(_LLAMA, rope=RopeSpec(layout="interleaved")), "rope.layout: family llama cannot express 'interl"),
        (replace(_V2, rope=RopeSpec(layout="half")), "rope.layout: family deepseek_v2 cannot express 'half'"),
        (replace(_LLAMA, num_nextn_predict_layers=1), "num_nextn_predict_layers: family llama cannot express 1"),
        (replace(_LLAMA, family="qwen2"), "attention.qkv_bias: family qwen2 cannot express False"),
        (
            replace(_LLAMA, attention=replace(_LLAMA.attention, qkv_bias=True)),
            "attention.out_bias: family llama cannot express False; its readers would take True",
        ),
        (
            replace(_LLAMA, attention=replace(_LLAMA.attention, sliding_window=64)),
            "attention.sliding_window: family llama cannot express 64",
        ),
        (
            replace(_V2, moe=replace(_V2.moe, router=RouterSpec(normalize=True))),
            "moe.router.normalize: family deepseek_v2 cannot express True",
        ),
        (
            replace(_V2, moe=replace(_V2.moe, router=RouterSpec(score="sigmoid"))),
            "moe.router.score: family deepseek_v2 cannot express 'sigmoid'",
        ),
        (
            replace(
                _V3, moe=replace(_V3.moe, router=replace(_V3.moe.router, select=GroupLimited(n_group=8, topk_group=4)))
            ),
            "moe.router.select.group_score: family deepseek_v3 cannot express 'max'",
        ),
    ],
)
def test_a_spec_its_family_cannot_express_is_not_written(spec: ModelSpec, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec_to_hf(spec)


def test_dense_latent_models_and_models_of_experts_only_are_expressible() -> None:
    all_experts = replace(_V2, first_k_dense_replace=0, intermediate_size=None)
    for spec in (
        replace(_V2, moe=None, first_k_dense_replace=0),
        replace(_V3, moe=None, first_k_dense_replace=0),
        all_experts,
        replace(_V2, moe_layer_freq=2),
        replace(
            _V2,
            rope=RopeSpec(
                layout="interleaved",
                scaling=YarnScaling(factor=8.0, original_max_position_embeddings=512, truncate=False),
            ),
        ),
    ):
        assert spec_from_hf(spec_to_hf(spec)).spec == spec


def test_yarn_fills_in_what_transformers_would() -> None:
    scaling = {"rope_type": "yarn", "original_max_position_embeddings": 8192}
    read = spec_from_hf(released("mistral-7b") | {"rope_scaling": scaling})
    assert read.spec.rope.scaling == YarnScaling(factor=4.0, original_max_position_embeddings=8192)
    assert spec_to_hf(read.spec, read.carried)["rope_scaling"] == scaling
