"""DeepSeek-VL's config.json: three configs in one, as transformers writes it and as the released weights have it."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, DeepseekVLConfig, DeepseekVLHybridConfig

from fathom.errors import SpecError
from fathom.families import preset
from fathom.spec import ModelSpec, from_mapping, to_mapping
from fathom.spec.hf import spec_from_hf, spec_to_hf

TEXT = {"vocab_size": 102400}
CONVERTED_SIGLIP = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "image_size": 384,
    "patch_size": 16,
    "hidden_act": "gelu",
    "vision_use_head": False,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
}
CONVERTED: dict[str, dict[str, Any]] = {
    "deepseek-vl-1.3b": {
        "model_type": "deepseek_vl",
        "text_config": {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "max_position_embeddings": 16384,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "vocab_size": 102400,
        },
        "vision_config": CONVERTED_SIGLIP,
    },
    "deepseek-vl-7b": {
        "model_type": "deepseek_vl_hybrid",
        "text_config": {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "max_position_embeddings": 16384,
            "num_attention_heads": 32,
            "num_hidden_layers": 30,
            "vocab_size": 102400,
        },
        "vision_config": CONVERTED_SIGLIP,
        "high_res_vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "image_size": 1024,
            "patch_size": 16,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
        },
    },
}
"""The fields from which transformers converted the released weights (``intermediate_size`` of SAM means nothing)."""

FROM_TRANSFORMERS_4 = {
    "architectures": None,
    "bad_words_ids": None,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "is_encoder_decoder": False,
    "length_penalty": 1.0,
    "max_length": 20,
    "num_beams": 1,
    "pruned_heads": {},
    "temperature": 1.0,
    "tie_word_embeddings": False,
    "top_k": 50,
    "torch_dtype": "float16",
    "torchscript": False,
}
CONFIGS: dict[str, Any] = {
    "vl": lambda: DeepseekVLConfig(text_config=dict(TEXT)),
    "vl untied, image token, rope": lambda: DeepseekVLConfig(
        text_config={"rope_scaling": {"type": "linear", "factor": 2.0}, "eos_token_id": [2, 3]},
        vision_config={"vision_use_head": False, "hidden_act": "gelu", "attention_dropout": 0.1},
        image_token_id=31999,
        tie_word_embeddings=False,
        dtype="bfloat16",
    ),
    "hybrid": lambda: DeepseekVLHybridConfig(text_config=dict(TEXT)),
    "hybrid, mlp ratio": lambda: DeepseekVLHybridConfig(
        text_config=dict(TEXT), high_res_vision_config={"mlp_ratio": 2.5, "use_rel_pos": False}
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_transformers_writes_comes_back_letter_for_letter(name: str, tmp_path: Path) -> None:
    CONFIGS[name]().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    read = spec_from_hf(written)
    assert spec_to_hf(read.spec, read.carried) == written
    assert json.dumps(spec_to_hf(read.spec, json.loads(json.dumps(read.carried))), sort_keys=True) == json.dumps(
        written, sort_keys=True
    )


@pytest.mark.parametrize("config", [DeepseekVLConfig, DeepseekVLHybridConfig])
def test_missing_fields_and_configs_mean_transformers_defaults(config: Any) -> None:
    short = {"model_type": config.model_type, "text_config": dict(TEXT)}
    whole = config(text_config=dict(TEXT)).to_dict()
    read = spec_from_hf(short)
    assert read.spec == spec_from_hf(whole).spec
    assert read.spec.tie_word_embeddings
    assert spec_to_hf(read.spec, read.carried) == short


@pytest.mark.parametrize("name", CONVERTED)
def test_the_converted_releases_are_the_presets(name: str) -> None:
    config = copy.deepcopy(CONVERTED[name])
    for table in ("text_config", "vision_config", "high_res_vision_config"):
        if table in config:
            config[table] |= FROM_TRANSFORMERS_4
    read = spec_from_hf(config, name=name)
    spec = preset(name)
    assert not read.spec.tie_word_embeddings, "transformers 4 looked in text_config"
    unlike = {"initializer_range": 0.006, "bos_token_id": 100000, "eos_token_id": 100001}
    assert replace(read.spec, **unlike) == spec
    assert spec_to_hf(read.spec, read.carried) == config


@pytest.mark.parametrize("name", CONVERTED)
def test_presets_survive_config_json_as_transformers_reads_it(name: str) -> None:
    spec = preset(name)
    written = spec_to_hf(spec)
    assert spec_from_hf(json.loads(json.dumps(written))).spec == spec
    config = AutoConfig.for_model(**copy.deepcopy(written))
    assert config.vision_config.hidden_act == "gelu"
    assert (config.image_token_id, config.tie_word_embeddings) == (100015, False)
    if spec.vision is not None and spec.vision.high is not None:
        assert config.high_res_vision_config.mlp_dim == spec.vision.high.mlp_dim
        assert list(config.high_res_vision_config.global_attn_indexes) == [2, 5, 8, 11]
    assert from_mapping(ModelSpec, to_mapping(spec)) == spec


def test_only_what_changed_is_written_otherwise() -> None:
    config = copy.deepcopy(CONVERTED["deepseek-vl-7b"])
    config["text_config"] |= FROM_TRANSFORMERS_4
    config["high_res_vision_config"] |= {"num_pos_feats": 128}
    read = spec_from_hf(config)
    changed = replace(read.spec, rms_norm_eps=1e-5, vision=replace(read.spec.vision, image_token_id=11))
    expected = copy.deepcopy(config) | {"image_token_id": 11}
    expected["text_config"]["rms_norm_eps"] = 1e-5
    assert spec_to_hf(changed, read.carried) == expected


def test_the_mlp_is_as_wide_as_its_ratio_where_no_width_is_given() -> None:
    theirs = DeepseekVLHybridConfig(high_res_vision_config={"mlp_ratio": 2.5})
    read = spec_from_hf(refused("high_res_vision_config", mlp_ratio=2.5)).spec
    assert read.vision is not None
    assert read.vision.high is not None
    assert read.vision.high.mlp_dim == theirs.high_res_vision_config.mlp_dim == 1920


def test_the_rotary_embedding_is_written_in_the_form_it_was_read_in() -> None:
    written = json.loads(json.dumps(DeepseekVLConfig(text_config=dict(TEXT)).to_dict()))
    read = spec_from_hf(written)
    changed = spec_to_hf(replace(read.spec, rope=replace(read.spec.rope, theta=7.0)), read.carried)
    expected = copy.deepcopy(written)
    expected["text_config"]["rope_parameters"]["rope_theta"] = 7.0
    assert changed == expected


def refused(name: str, **changes: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONVERTED["deepseek-vl-7b"])
    config[name].update(changes)
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (refused("text_config", model_type="qwen2"), "text_config.model_type: 'qwen2' is not supported"),
        (refused("text_config", attention_sinks=4), "text_config.attention_sinks: 4 is not supported"),
        (refused("text_config", hidden_act="gelu"), "text_config.hidden_act: 'gelu' is not supported"),
        (refused("text_config", vocab_size=None, hidden_size="4096"), "text_config.hidden_size: expected a whole"),
        (refused("vision_config", model_type="clip_vision_model"), "vision_config.model_type: 'clip_vision_model'"),
        (refused("vision_config", hidden_act="silu"), "vision_config.hidden_act: 'silu' is not supported"),
        (refused("vision_config", num_channels=1), "vision_config.num_channels: 1 is not supported"),
        (refused("vision_config", image_size=[384, 384]), "vision_config.image_size: expected a whole number"),
        (refused("vision_config", image_size=380), "vision_config.image_size: 380 is not a multiple of 16"),
        (refused("high_res_vision_config", hidden_act="relu"), "high_res_vision_config.hidden_act: 'relu'"),
        (refused("high_res_vision_config", qkv_bias=False), "high_res_vision_config.qkv_bias: False"),
        (refused("high_res_vision_config", use_abs_pos=False), "high_res_vision_config.use_abs_pos: False"),
        (refused("high_res_vision_config", global_attn_indexes=[12]), "high_res_vision_config.global_attn_indexes"),
        (refused("high_res_vision_config", global_attn_indexes="2"), "global_attn_indexes: expected a list of layers"),
        (CONVERTED["deepseek-vl-7b"] | {"image_token_id": 102400}, "image_token_id: 102400 is outside the vocabulary"),
        (CONVERTED["deepseek-vl-7b"] | {"vision_config": 3}, "vision_config: expected a table, got 3"),
        (CONVERTED["deepseek-vl-7b"] | {"audio_config": {"x": 1}}, "audio_config: {'x': 1} is not supported"),
        (CONVERTED["deepseek-vl-1.3b"] | {"high_res_vision_config": {"x": 1}}, "high_res_vision_config: {'x': 1} is"),
    ],
)
def test_what_is_not_built_is_refused_with_its_place(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_from_hf(config)
    assert str(caught.value).startswith(message) or message in str(caught.value)


def test_unknown_fields_of_a_tower_are_carried_and_named() -> None:
    config = refused("vision_config", patches="all")
    read = spec_from_hf(config)
    assert read.unknown == ("vision_config.patches",)
    assert spec_to_hf(read.spec, read.carried) == config


@pytest.mark.parametrize(
    ("family", "name", "message"),
    [
        ("llama", "deepseek-vl-7b", "vision.*: family llama cannot express"),
        ("deepseek_vl", "deepseek-vl-7b", "vision.high: family deepseek_vl has one tower"),
        ("deepseek_vl_hybrid", "deepseek-vl-1.3b", "vision.high: family deepseek_vl_hybrid has two towers"),
        ("deepseek_vl", "deepseek-llm-7b", "vision: family deepseek_vl needs vision towers"),
    ],
)
def test_a_family_writes_only_its_own_towers(family: Any, name: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec_to_hf(replace(preset(name), family=family))


WHOLE = {name: json.loads(json.dumps(spec_to_hf(preset(name)))) for name in CONVERTED}
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 200)
    | st.floats(-1, 5)
    | st.sampled_from(["gelu", "silu", "", "llama", "siglip_vision_model"])
    | st.lists(st.integers(-1, 13), max_size=3)
    | st.dictionaries(st.sampled_from(["type", "hidden_size", "x"]), st.integers(0, 9), max_size=2)
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_field_of_any_config_may_hold_anything_or_be_missing(data: st.DataObject) -> None:
    config = copy.deepcopy(data.draw(st.sampled_from(list(WHOLE.values()))))
    tables = [config] + [value for value in config.values() if isinstance(value, dict)]
    for _ in range(data.draw(st.integers(1, 3))):
        table = data.draw(st.sampled_from(tables))
        key = data.draw(st.sampled_from([*table, "unheard_of"]))
        if data.draw(st.booleans()):
            table[key] = data.draw(VALUES)
        else:
            table.pop(key, None)
    try:
        read = spec_from_hf(config)
        written = spec_to_hf(read.spec, read.carried)
    except SpecError:
        return
    assert json.dumps(written, sort_keys=True) == json.dumps(config, sort_keys=True)
