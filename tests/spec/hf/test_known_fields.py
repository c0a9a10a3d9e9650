"""Every field that a config.json of our families may have is read, changes nothing, or is refused by a table."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    DeepseekVLConfig,
    DeepseekVLHybridConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2Config,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from fathom.errors import SpecError
from fathom.spec.hf import spec_from_hf, spec_to_hf
from fathom.spec.hf.known_fields import ALIASES, INERT, UNSUPPORTED

CLASSES: dict[str, Any] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "mixtral": MixtralConfig,
    "deepseek_v2": DeepseekV2Config,
    "deepseek_v3": DeepseekV3Config,
    "deepseek_vl": DeepseekVLConfig,
    "deepseek_vl_hybrid": DeepseekVLHybridConfig,
}
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "max_window_layers": 0,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
TEXT = [name for name in CLASSES if "vl" not in name]


def small(name: str, **changes: Any) -> dict[str, Any]:
    fields = {field.name for field in dataclasses.fields(CLASSES[name])}
    config: dict[str, Any] = CLASSES[name](**{key: size for key, size in SMALL.items() if key in fields}).to_dict()
    return config | changes


def whole(name: str) -> dict[str, Any]:
    config: dict[str, Any] = small(name) if name in TEXT else CLASSES[name]().to_dict()
    return config


def published_fields(name: str) -> list[str]:
    """Every field of the class, its other names, and what older releases of transformers wrote for any model."""
    older = ("num_labels", "torch_dtype", "rope_theta", "rope_scaling", "is_decoder", "top_k", "num_beams", "prefix")
    listed = {field.name for field in dataclasses.fields(CLASSES[name])}
    return sorted(listed | CLASSES[name].attribute_map.keys() | PretrainedConfig().to_dict().keys() | set(older))


@pytest.mark.parametrize("name", CLASSES)
def test_every_field_of_transformers_is_read_or_inert_or_in_the_table(name: str) -> None:
    for field in published_fields(name):
        for value in ("surprise", 77, ["x"]):
            try:
                read = spec_from_hf(whole(name) | {field: value})
            except SpecError:
                continue  # it was read, and refused
            assert not read.unknown, f"{field} of {name} is in no table"


@pytest.mark.parametrize("name", TEXT)
def test_fields_that_are_said_to_change_nothing_change_no_logits(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CLASSES[name].from_dict(small(name))).eval()
    tokens = torch.arange(40)[None] % 64
    with torch.inference_mode():
        wanted = model(tokens).logits
    state = model.state_dict()
    other = {"attention_dropout": 0.5, "router_jitter_noise": 0.5, "use_cache": False, "output_router_logits": True}
    for field in sorted(INERT & {field.name for field in dataclasses.fields(CLASSES[name])}):
        if field not in other:
            continue
        again = AutoModelForCausalLM.from_config(CLASSES[name].from_dict(small(name) | {field: other[field]})).eval()
        again.load_state_dict(state)
        with torch.inference_mode():
            assert torch.equal(again(tokens).logits, wanted), field


def test_the_aliases_are_those_of_transformers() -> None:
    for name in TEXT:
        assert ALIASES.get(name, {}) == CLASSES[name].attribute_map


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_harmless_values_pass_and_others_are_refused_with_a_remedy_that_works(field: str) -> None:
    entry = UNSUPPORTED[field]
    assert field not in INERT
    for value in (None, *entry.harmless):
        if value in ("swish",) or field not in small("mistral"):
            assert not spec_from_hf(small("mistral", **{field: value})).unknown
    with pytest.raises(SpecError) as caught:
        spec_from_hf(small("mistral", **{field: 77}))
    assert str(caught.value).startswith(f"{field}: 77 is not supported, for {entry.reason}; ")
    if "remove it" in caught.value.remedy:
        spec_from_hf(small("mistral"))


@pytest.mark.parametrize("kind", [*ROPE_INIT_FUNCTIONS, "default", "mrope", "su", "brand-new"])
def test_every_kind_of_rope_is_read_or_refused_by_name(kind: str) -> None:
    table = {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": 32}
    table |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    for config in (small("llama", rope_parameters=table), small("llama", rope_parameters=None, rope_scaling=table)):
        if kind in ("default", "linear", "llama3", "yarn"):
            scaling = spec_from_hf(config).spec.rope.scaling
            assert (scaling.kind if scaling else "default") == kind
        else:
            with pytest.raises(
                SpecError, match=f"rope_type: '{kind}' is not supported, only default, linear"
            ) as caught:
                spec_from_hf(config)
            assert caught.value.remedy


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3", "mixtral"])
def test_a_field_under_another_name_is_read_and_kept_until_it_changes(name: str) -> None:
    for alias, field in ALIASES[name].items():
        config = small(name)
        value = config.pop(field, 1)
        config = config | {alias: value}
        read = spec_from_hf(config)
        assert read.spec == spec_from_hf({key: v for key, v in config.items() if key != alias} | {field: value}).spec
        assert spec_to_hf(read.spec, read.carried) == config
    if name == "deepseek_v3":
        changed = spec_to_hf(dataclasses.replace(read.spec, num_nextn_predict_layers=0), read.carried)
        assert (changed["num_nextn_predict_layers"], "num_mtp_layers" in changed) == (0, False)


def test_whole_numbers_may_be_written_as_fractions_and_both_ropes_may_stand_side_by_side() -> None:
    config = small(
        "llama",
        hidden_size=32.0,
        eos_token_id=2.0,
        pad_token_id=[],
        rope_theta=10000,
        rope_scaling={"type": "linear", "factor": 4},
    )
    config["rope_parameters"] = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    read = spec_from_hf(config)
    assert (read.spec.hidden_size, read.spec.eos_token_id, read.spec.pad_token_id) == (32, 2, None)
    assert read.spec.rope == spec_from_hf(config | {"rope_scaling": None}).spec.rope
    assert spec_to_hf(read.spec, read.carried) == config
    changed = spec_to_hf(
        dataclasses.replace(read.spec, rope=dataclasses.replace(read.spec.rope, theta=7.0)), read.carried
    )
    assert spec_from_hf(changed).spec.rope.theta == 7.0
    with pytest.raises(SpecError, match="rope_scaling: rope_parameters is given too, and means another rotation"):
        spec_from_hf(config | {"rope_scaling": {"type": "linear", "factor": 8.0}})


@pytest.mark.parametrize("window", [None, 0, 128, 4096])
def test_a_window_as_wide_as_the_context_is_none(window: int | None) -> None:
    config = small("llama", sliding_window=window, layer_types=["full_attention"] * 2)
    read = spec_from_hf(config)
    assert read.spec == spec_from_hf(small("llama")).spec
    assert spec_to_hf(read.spec, read.carried) == config
    off = small("llama", sliding_window=16, use_sliding_window=False)
    assert spec_from_hf(off).spec == read.spec
