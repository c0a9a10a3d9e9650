"""Directories as they are released: every family's config.json with small sizes, beside weights that fit it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils.quantization_config import QuantizationMethod

from fathom.checkpoint.hf import HFCheckpoint, load_hf, save_hf, write_hf
from fathom.checkpoint.hf.scales import QUANTIZATION_METHODS
from fathom.errors import CheckpointError, SpecError
from fathom.model.build import parameter_shapes
from fathom.spec import ModelSpec
from fathom.spec.hf import spec_from_hf
from fathom.tokenizer.training import train_bpe

RELEASED = Path(__file__).parents[1] / "spec/hf/released"
NAMES = sorted(path.stem for path in RELEASED.glob("*.json"))
SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 24,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "n_routed_experts": 16,
    "num_local_experts": 4,
    "first_k_dense_replace": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "max_window_layers": 4,
}


def released(name: str) -> dict[str, Any]:
    """A released config whose sizes, where they are numbers, are small ones."""
    config: dict[str, Any] = json.loads((RELEASED / f"{name}.json").read_text())
    return config | {key: size for key, size in SMALL.items() if config.get(key) is not None}


def random_state(spec: ModelSpec, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in parameter_shapes(spec).items()}


def publish(directory: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """Write what a release holds, the config as it is; return our tensors."""
    spec = spec_from_hf(config).spec
    state = random_state(spec)
    save_hf(directory, spec, state)
    (directory / "config.json").write_text(json.dumps(config))
    return state


def config_of(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return config


EXTRAS: dict[str, dict[str, Any]] = {
    "as released": {},
    "a list of ends": {"eos_token_id": [7, 1, 3]},
    "remote code": {"auto_map": {"AutoConfig": "configuration_deepseek.DeepseekConfig"}, "_name_or_path": "some/model"},
    "saved again": {"dtype": "bfloat16", "transformers_version": "5.1.0", "unsloth_version": "2025.1"},
}


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS)
@pytest.mark.parametrize("name", NAMES)
def test_a_release_is_read_and_written_back_letter_for_letter(name: str, extra: dict[str, Any], tmp_path: Path) -> None:
    config = released(name) | extra
    dtype = "fp8" if "quantization_config" in config else None
    state = publish(tmp_path / "model", config)
    source = HFCheckpoint.open(tmp_path / "model")
    assert dict(source.dtypes) == dict.fromkeys(state, torch.bfloat16)
    found = dict(source.stream())
    assert list(found) == list(state)
    assert all(torch.equal(found[tensor], state[tensor]) for tensor in state)
    write_hf(tmp_path / "again", source, carried=source.carried, dtype=dtype)
    assert json.dumps(config_of(tmp_path / "again"), sort_keys=True) == json.dumps(config, sort_keys=True)


@pytest.mark.parametrize("name", ["deepseek-coder-1.3b", "deepseek-v2", "deepseek-r1-distill-llama-8b"])
def test_ropes_are_read_in_every_spelling(name: str, tmp_path: Path) -> None:
    config = released(name)
    scaling = dict(config.pop("rope_scaling"))
    kind = scaling.pop("type", None) or scaling.pop("rope_type", None)
    base = {"rope_theta": config["rope_theta"]}
    spellings: list[dict[str, Any]] = [
        {"rope_scaling": scaling | {"type": kind}},
        {"rope_scaling": scaling | {"rope_type": kind}},
        {"rope_scaling": scaling | {"type": kind, "rope_type": kind}},
        {"rope_parameters": scaling | base | {"rope_type": kind}},
    ]
    ropes = []
    for index, spelling in enumerate(spellings):
        publish(tmp_path / str(index), config | spelling)
        ropes.append(HFCheckpoint.open(tmp_path / str(index)).spec.rope)
    assert ropes == [ropes[0]] * 4
    assert ropes[0].scaling is not None


@pytest.mark.parametrize("promise", [{}, {"num_nextn_predict_layers": 1}, {"num_nextn_predict_layers": 2}])
def test_prediction_modules_that_are_all_absent_are_done_without(promise: dict[str, int], tmp_path: Path) -> None:
    """transformers saves DeepSeek-V3 so: the config keeps its promise, the modules are dropped."""
    config = released("deepseek-v3")
    del config["num_nextn_predict_layers"]
    publish(tmp_path / "model", config | {"num_nextn_predict_layers": 0})
    (tmp_path / "model/config.json").write_text(json.dumps(config | promise))
    source = HFCheckpoint.open(tmp_path / "model")
    assert source.spec.num_nextn_predict_layers == 0
    assert not any(name.startswith("mtp") for name, _ in source.stream())
    write_hf(tmp_path / "again", source, carried=source.carried, dtype="fp8")
    assert config_of(tmp_path / "again") == config | promise
    assert HFCheckpoint.open(tmp_path / "again").spec == source.spec


def test_prediction_modules_that_are_half_there_are_a_fault(tmp_path: Path) -> None:
    publish(tmp_path / "model", released("deepseek-v3"))
    path = tmp_path / "model/model.safetensors"
    tensors = load_file(path)
    assert HFCheckpoint.open(tmp_path / "model").spec.num_nextn_predict_layers == 1
    del tensors["model.layers.4.eh_proj.weight"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"model: the checkpoint does not fit .* 1 missing \(model.layers.4.eh_p"):
        HFCheckpoint.open(tmp_path / "model")


def test_faults_of_a_config_name_its_file_and_field(tmp_path: Path) -> None:
    publish(tmp_path / "model", released("deepseek-v2"))
    path = tmp_path / "model/config.json"
    good = config_of(tmp_path / "model")
    bad: dict[str, dict[str, Any]] = {
        "model_type: 'gpt2' is not supported": {"model_type": "gpt2"},
        "rope_scaling.factor: ": {"rope_scaling": {"type": "yarn", "factor": "four"}},
        "hidden_act: 'gelu' is not supported": {"hidden_act": "gelu"},
        "vocab_size: expected a whole number": {"vocab_size": "many"},
    }
    for problem, fields in bad.items():
        path.write_text(json.dumps(good | fields))
        with pytest.raises(SpecError) as caught:
            load_hf(tmp_path / "model")
        assert str(caught.value).startswith(f"{path}: {problem}")
        assert "\n" not in str(caught.value)
    for text in ("", "null", "3", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(CheckpointError) as unread:
            load_hf(tmp_path / "model")
        assert str(unread.value).startswith(f"{path}: ")
        assert "\n" not in str(unread.value)


@pytest.mark.parametrize(
    ("in_config", "in_generation", "found"),
    [
        (None, None, {1}),
        (7, None, {1, 7}),
        ([7, 3], None, {1, 3, 7}),
        ([7], [3, 1], {1, 3, 7}),
        (None, 9, {1, 9}),
        (-1, [9, -1, True], {1, 9}),
        (2, 45, {1, 2, 45}),
        ([7, 45], 9, {1, 7, 9}),
    ],
)
def test_every_end_that_is_named_ends(in_config: Any, in_generation: Any, found: set[int], tmp_path: Path) -> None:
    """The tokenizer's counts too; a token of the config that is ordinary text, as 45 is, only alone."""
    publish(tmp_path / "model", released("deepseek-llm-7b"))
    config = config_of(tmp_path / "model") | {"eos_token_id": in_config}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    (tmp_path / "model/generation_config.json").write_text(json.dumps({"eos_token_id": in_generation}))
    tokenizer = train_bpe(["some words to train on"], vocab_size=300)
    tokenizer.save(tmp_path / "model")
    assert tokenizer.eos_id == 1
    assert HFCheckpoint.open(tmp_path / "model").eos_ids == found


@pytest.mark.parametrize(
    ("quantization", "problem"),
    [
        (
            {"quant_method": "gptq", "bits": 4},
            "quant_method 'gptq', 2- to 8-bit integers, is not read; use unquantized",
        ),
        ({"bits": 4, "group_size": 64, "desc_act": True}, "quant_method 'gptq'"),
        ({"bits": 4, "group_size": 64}, "quant_method 'mlx'"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "quant_method 'bitsandbytes'"),
        ({"quant_method": "brand-new"}, "quant_method 'brand-new' is not read"),
        ("fp4", "quant_method 'fp4' is not read"),
        ({"quant_method": "fp8", "weight_block_size": None}, "weight_block_size: None is not read"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"weight_block_size: \[128\] is not read"),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, "weights with 2-D blocks"),
    ],
)
def test_other_quantizations_are_refused_by_name(quantization: Any, problem: str, tmp_path: Path) -> None:
    publish(tmp_path / "model", released("deepseek-v2") | {"quantization_config": quantization})
    with pytest.raises(CheckpointError, match=problem):
        HFCheckpoint.open(tmp_path / "model")


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    publish(tmp_path / "model", released("deepseek-llm-7b"))
    path = tmp_path / "model/model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(2, dtype=torch.int64)
    save_file(tensors, path)
    HFCheckpoint.open(tmp_path / "model")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"model.norm.weight: is I8, which is not read as a weight"):
        HFCheckpoint.open(tmp_path / "model")


def test_unknown_fields_are_named_in_one_line_and_written_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    beyond = {"unsloth_fixed": True, "model_max_length": 4096, "use_flash_attn": True, "says_nothing": None}
    config = released("deepseek-llm-7b") | beyond
    publish(tmp_path / "model", config)
    for _ in range(2):
        source = HFCheckpoint.open(tmp_path / "model")
    line = "carries 3 fields that Fathom does not read: unsloth_fixed, model_max_length, use_flash_attn"
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path / 'model/config.json'}: {line}"]
    write_hf(tmp_path / "again", source, carried=source.carried)
    assert config_of(tmp_path / "again").items() >= beyond.items()


@pytest.mark.parametrize("method", [*QuantizationMethod, "mlx", "modelopt"])
def test_every_quantization_method_is_read_or_known_by_name(method: str) -> None:
    known = str(getattr(method, "value", method))
    assert known == "fp8" or known in QUANTIZATION_METHODS


def test_contradictory_ends_are_named_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish(tmp_path / "model", released("deepseek-llm-7b") | {"eos_token_id": 45})
    (tmp_path / "model/generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    train_bpe(["some words to train on"], vocab_size=300).save(tmp_path / "model")
    assert HFCheckpoint.open(tmp_path / "model").eos_ids == {1, 3, 4}
    said = "generation_config.json [3, 4], config.json [45], the tokenizer [1]"
    assert caplog.messages == [f"{tmp_path / 'model'}: eos_token_id differs ({said}); answers end at [1, 3, 4]"]
    (tmp_path / "model/generation_config.json").write_text(json.dumps({"eos_token_id": "</s>"}))
    with pytest.raises(CheckpointError, match=r"eos_token_id is '</s>'; give a token id or a list"):
        _ = HFCheckpoint.open(tmp_path / "model").eos_ids
