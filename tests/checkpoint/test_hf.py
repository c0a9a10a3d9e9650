"""Hugging Face directories: whole or absent when written, checked before they are believed when read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fathom.checkpoint.hf import HFCheckpoint, load_hf, save_hf
from fathom.checkpoint.tensorfile import TensorFileWriter
from fathom.errors import CheckpointError, ResourceError, SpecError
from fathom.model import build
from fathom.spec import GroupedQueryAttention, MixtureOfExperts, ModelSpec, RouterSpec

SPEC = ModelSpec(
    name="small",
    family="mixtral",
    vocab_size=30,
    hidden_size=8,
    num_hidden_layers=2,
    attention=GroupedQueryAttention(num_heads=2, num_kv_heads=1, head_dim=4),
    max_position_embeddings=32,
    moe=MixtureOfExperts(
        n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=6, router=RouterSpec(normalize=True)
    ),
)


def state() -> dict[str, Tensor]:
    return build(SPEC, seed=1).state_dict()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_hf(tmp_path / "model", SPEC, state())


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return save_hf(tmp_path / "sharded", SPEC, state(), max_shard_bytes=1500)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def edit_config(directory: Path, **fields: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | fields))


def test_one_file_and_many_hold_the_same(saved: Path, sharded: Path) -> None:
    for directory in (saved, sharded):
        spec, tensors = load_hf(directory)
        assert spec == SPEC
        assert same(tensors, state())
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    shards = sorted(sharded.glob("*.safetensors"))
    assert [p.name for p in shards] == [
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
    ]
    assert len(shards) > 2
    assert all(path.stat().st_size < 1500 + 4096 for path in shards)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state().values())
    placed = {name: path.name for path in shards for name in load_file(path)}
    assert index["weight_map"] == placed
    assert not (saved / "model.safetensors.index.json").exists()


def test_streaming_reads_headers_first_and_tensors_one_by_one(sharded: Path) -> None:
    published = HFCheckpoint.open(sharded)
    assert published.shapes["model.layers.0.block_sparse_moe.experts.3.w2.weight"] == (8, 6)
    stream = published.stream()
    assert next(stream)[0] == "embed_tokens.weight"
    stream.close()
    assert same(dict(published.stream()), state())


def test_unknown_harmless_fields_come_back(saved: Path, tmp_path: Path) -> None:
    edit_config(saved, transformers_version="4.33.1", router_aux_loss_coef=0.02, use_cache=False)
    published = HFCheckpoint.open(saved)
    save_hf(tmp_path / "again", published.spec, dict(published.stream()), carried=published.carried)
    config = json.loads((tmp_path / "again/config.json").read_text())
    assert (config["transformers_version"], config["router_aux_loss_coef"], config["use_cache"]) == (
        "4.33.1",
        0.02,
        False,
    )


def test_the_config_names_the_type_and_quantization_of_these_weights(saved: Path, tmp_path: Path) -> None:
    edit_config(saved, dtype="float8_e4m3fn", quantization_config={"quant_method": "fp8"})
    published = HFCheckpoint.open(saved)
    half = {name: tensor.bfloat16() for name, tensor in published.stream()}
    save_hf(tmp_path / "half", published.spec, half, carried=published.carried)
    config = json.loads((tmp_path / "half/config.json").read_text())
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    assert load_hf(tmp_path / "half")[1]["norm.weight"].dtype == torch.bfloat16


def test_tokenizer_files_travel(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    with pytest.raises(CheckpointError, match=r"holds no tokenizer.json; name the directory"):
        save_hf(tmp_path / "out", SPEC, state(), tokenizer=tokenizer)
    for name in ("tokenizer.json", "tokenizer_config.json", "notes.txt"):
        (tokenizer / name).write_text(name)
    out = save_hf(tmp_path / "out", SPEC, state(), tokenizer=tokenizer)
    files = {path.name for path in out.iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert (out / "tokenizer.json").read_text() == "tokenizer.json"


def test_nothing_is_overwritten_and_nothing_half_written_stays(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (saved / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="already exists; choose a new directory"):
        save_hf(saved, SPEC, state())
    assert (saved / "model.safetensors").read_bytes() == before

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorFileWriter, "write", full)
    with pytest.raises(ResourceError, match="not written, the disk is full; free disk space"):
        save_hf(tmp_path / "other", SPEC, state())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_parent_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="not written, a part of the path is a file"):
        save_hf(tmp_path / "file" / "model", SPEC, state())


def test_a_partial_state_is_not_exported(tmp_path: Path) -> None:
    partial = state()
    del partial["layers.1.mlp.experts.down_proj"]
    with pytest.raises(CheckpointError, match=r"1 missing \(layers.1.mlp.experts.down_proj\)"):
        save_hf(tmp_path / "model", SPEC, partial)
    assert list(tmp_path.iterdir()) == []


def test_files_are_readable_by_others_as_the_umask_says(saved: Path) -> None:
    assert (saved / "model.safetensors").stat().st_mode & 0o777 == (saved / "config.json").stat().st_mode & 0o777


def test_missing_things_are_named(saved: Path, sharded: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory; check the path"):
        load_hf(tmp_path / "nowhere")
    (saved / "config.json").rename(saved / "kept.json")
    with pytest.raises(CheckpointError, match=r"config.json: is missing"):
        load_hf(saved)
    (saved / "kept.json").rename(saved / "config.json")
    (saved / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds neither model.safetensors nor"):
        load_hf(saved)
    (saved / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"holds pickled weights \(pytorch_model.bin\), which are never read"):
        load_hf(saved)
    for path in sorted(sharded.glob("*.safetensors"))[:2]:
        path.unlink()
    with pytest.raises(
        CheckpointError, match=r"2 of 7 files of model.safetensors.index.json are missing \(model-00001-of"
    ):
        load_hf(sharded)


def test_damaged_files_are_named(saved: Path, sharded: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model.safetensors: cannot be read .*download the file again"):
        load_hf(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json: cannot be read"):
        load_hf(saved)
    (saved / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config.json: is no JSON object"):
        load_hf(saved)
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    shutil.copy(second, first)
    with pytest.raises(CheckpointError, match=r"model-00001-of-.*: lacks model.embed_tokens.weight, which"):
        load_hf(sharded)


def test_an_index_may_not_point_elsewhere(sharded: Path, tmp_path: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shutil.copy(sorted(sharded.glob("*.safetensors"))[0], tmp_path / "outside.safetensors")
    content["weight_map"]["model.norm.weight"] = "../outside.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(
        CheckpointError, match=r"names '../outside.safetensors', which is no .safetensors file of its directory"
    ):
        load_hf(sharded)
    index.write_text(json.dumps({"metadata": {}}))
    with pytest.raises(CheckpointError, match="has no weight_map"):
        load_hf(sharded)


def test_weights_that_do_not_fit_the_config_are_refused_before_reading(saved: Path) -> None:
    edit_config(saved, num_local_experts=5)
    with pytest.raises(CheckpointError) as caught:
        load_hf(saved)
    assert "6 missing (model.layers.0.block_sparse_moe.experts.4.w1.weight" in str(caught.value)
    assert "2 of another shape" in str(caught.value)
    edit_config(saved, num_local_experts=4, model_type="gpt2")
    with pytest.raises(SpecError, match="gpt2"):
        load_hf(saved)


def test_unexpected_tensors_are_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    save_file(load_file(path) | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(8)}, path)
    with pytest.raises(CheckpointError, match=r"1 unexpected \(model.layers.0.self_attn.q_proj.bias\)"):
        load_hf(saved)
