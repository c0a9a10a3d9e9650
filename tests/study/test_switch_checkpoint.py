"""Published Switch directories: opened, written, and refused where something is not what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration
from transformers.utils import logging

from fathom.errors import CheckpointError, SpecError
from fathom.study.switch_t5 import build, load, save, spec_from_config, spec_to_config
from fathom.study.switch_t5.names import from_hf, rules, to_hf

logging.disable_progress_bar()
SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 12,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
    "num_heads": 2,
    "num_experts": 3,
    "expert_capacity": 4,
    "decoder_start_token_id": 0,
}


def theirs_of(**fields: Any) -> SwitchTransformersForConditionalGeneration:
    torch.manual_seed(0)
    return SwitchTransformersForConditionalGeneration(SwitchTransformersConfig(**(SMALL | fields))).eval()


@pytest.fixture
def published(tmp_path: Path) -> Path:
    theirs_of().save_pretrained(tmp_path / "switch")
    return tmp_path / "switch"


def logits_of(model: Any) -> Tensor:
    source, target = torch.arange(2, 20).view(2, 9), torch.arange(8).view(2, 4)
    with torch.no_grad():
        if isinstance(model, SwitchTransformersForConditionalGeneration):
            return model(input_ids=source, decoder_input_ids=target).logits
        return model(source, target).logits_BTV


@pytest.mark.parametrize("shards", [False, True])
def test_a_published_directory_opens_and_computes_the_same(tmp_path: Path, shards: bool) -> None:
    theirs = theirs_of()
    theirs.save_pretrained(tmp_path / "switch", max_shard_size="6KB" if shards else "1GB")
    assert (tmp_path / "switch" / "model.safetensors.index.json").exists() == shards
    ours = load(tmp_path / "switch")
    assert not ours.training
    assert ours.spec.name == "switch"
    torch.testing.assert_close(logits_of(ours), logits_of(theirs), rtol=1e-5, atol=1e-5)


def test_what_we_write_opens_in_transformers(tmp_path: Path) -> None:
    ours = build(spec_from_config(SwitchTransformersConfig(**SMALL).to_dict()), seed=5).eval()
    save(tmp_path / "mine", ours)
    theirs, result = SwitchTransformersForConditionalGeneration.from_pretrained(
        tmp_path / "mine", output_loading_info=True
    )
    assert not result["missing_keys"]
    assert not result["unexpected_keys"]
    torch.testing.assert_close(logits_of(ours), logits_of(theirs.eval()), rtol=1e-5, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
    with pytest.raises(CheckpointError, match="exists already"):
        save(tmp_path / "mine", ours)


def test_names_are_a_bijection_bit_for_bit(published: Path, tmp_path: Path) -> None:
    stored, ours = load_file(published / "model.safetensors"), load(published)
    again = to_hf(ours.spec, ours.state_dict())
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], stored[name]) for name in stored)
    back = from_hf(ours.spec, again)
    assert back.keys() == ours.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.state_dict().items())
    assert {rule.param_name: rule.shape for rule in rules(ours.spec)} == {
        name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()
    }
    save(tmp_path / "copy", ours)
    copied = load_file(tmp_path / "copy" / "model.safetensors")
    assert all(torch.equal(copied[name], stored[name]) for name in stored)


@pytest.mark.parametrize(
    "fields", [{}, {"tie_word_embeddings": False}, {"num_layers": 5, "num_sparse_encoder_layers": 2}]
)
def test_the_config_survives_spec_and_back(fields: dict[str, Any]) -> None:
    config = SwitchTransformersConfig(**(SMALL | fields)).to_dict()
    written = spec_to_config(spec_from_config(config))
    assert {name: config[name] for name in written if name != "architectures"} == {
        name: value for name, value in written.items() if name != "architectures"
    }


def test_no_mixture_in_a_config_means_one_as_the_published_class_builds_it() -> None:
    none, one = ({**SwitchTransformersConfig(**SMALL).to_dict(), "num_sparse_encoder_layers": n} for n in (0, 1))
    assert spec_from_config(none) == spec_from_config(one)
    with pytest.raises(SpecError, match="cannot express"):
        spec_to_config(replace(spec_from_config(one), encoder_sparse_step=0))


def change(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"model_type": "t5"}, "model_type"),
        ({"dense_act_fn": "gated-gelu"}, "only ReLU"),
        ({"router_dtype": "bfloat16"}, "float32"),
        ({"router_bias": True}, "router_bias"),
        ({"d_model": "wide"}, "whole number"),
        ({"encoder_sparse_step": 7}, "correct the config.json"),
        ({"num_sparse_encoder_layers": 3}, "at most all"),
        ({"surprise": 3}, "unknown field"),
    ],
)
def test_configs_that_are_not_built_are_refused_by_field(published: Path, fields: dict[str, Any], problem: str) -> None:
    change(published, **fields)
    with pytest.raises(SpecError, match=problem) as caught:
        load(published)
    assert "\n" not in str(caught.value)


def rewrite(directory: Path, **tensors: Tensor | None) -> None:
    path = directory / "model.safetensors"
    stored: dict[str, Any] = load_file(path) | tensors
    save_file({name: tensor for name, tensor in stored.items() if tensor is not None}, path)


def test_wrong_tensors_are_all_told_at_once(published: Path) -> None:
    rewrite(
        published,
        **{
            "shared.weight": None,
            "surprise": torch.zeros(1),
            "encoder.block.1.layer.1.mlp.experts.expert_2.wi.weight": torch.zeros(3, 3),
        },
    )
    with pytest.raises(CheckpointError) as caught:
        load(published)
    message = str(caught.value)
    assert "1 missing (shared.weight)" in message
    assert "1 unexpected (surprise)" in message
    assert "expert_2.wi.weight (3, 3) instead of (12, 8)" in message
    assert "\n" not in message


def test_copies_of_the_embedding_are_accepted_only_where_equal(published: Path) -> None:
    shared = load_file(published / "model.safetensors")["shared.weight"]
    rewrite(published, **{"encoder.embed_tokens.weight": shared, "lm_head.weight": shared.clone()})
    load(published)
    rewrite(published, **{"encoder.embed_tokens.weight": shared + 1})
    with pytest.raises(CheckpointError, match=r"encoder\.embed_tokens\.weight differs"):
        load(published)


def test_missing_files_are_named_with_what_to_do(tmp_path: Path, published: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path / "nowhere")
    (published / "model.safetensors").rename(published / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"convert pytorch_model\.bin"):
        load(published)
    (published / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="no table"):
        load(published)


def test_an_index_may_not_leave_the_directory(published: Path) -> None:
    (published / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../model.safetensors"}}))
    with pytest.raises(CheckpointError, match="no table of file names"):
        load(published)
