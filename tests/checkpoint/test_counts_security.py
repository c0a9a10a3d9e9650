"""Counts of a hostile configuration end in an error at once: nothing is made for each layer or expert it promises."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from fathom.checkpoint.tensorfile import MAX_TENSORS, TensorFile
from fathom.errors import CheckpointError, FathomError, SpecError
from fathom.inference.inspection import inspect_source
from fathom.inference.loading import open_source
from fathom.model.build import parameter_shapes
from tests.checkpoint import test_names_vision as vision
from tests.published import SPECS, Publish, publish, train_tokenizer, write_published

_ = publish
HUGE = (10**9, 10**12, 10**15, 2**63, 10**300)
FIELDS = (
    *("num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "num_nextn_predict_layers", "n_routed_experts", "num_local_experts"),
    *("n_shared_experts", "moe_intermediate_size", "kv_lora_rank", "q_lora_rank", "v_head_dim", "qk_rope_head_dim"),
)

OURS = {
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "num_local_experts": "n_routed_experts",
    "intermediate_size": "moe_intermediate_size",
}
"""What a field is named by where it is no field of its own."""


def refused(folder: Path, config: dict[str, Any]) -> str:
    """Open a model with another config.json and return the error; it must cost little."""
    (folder / "config.json").write_text(json.dumps(config))
    tracemalloc.start()
    begin = time.process_time()
    try:
        with pytest.raises(FathomError) as caught:
            inspect_source(open_source(folder))
        assert time.process_time() - begin < 6  # tracemalloc makes it several times slower
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()
    return str(caught.value)


@pytest.fixture
def copied(publish: Publish, tmp_path: Path) -> Any:
    def copy(name: str) -> tuple[Path, dict[str, Any]]:
        folder = tmp_path / name
        shutil.copytree(publish(name), folder)
        return folder, json.loads((folder / "config.json").read_text())

    return copy


@pytest.mark.parametrize("name", SPECS)
def test_absurd_counts_are_refused_by_field_and_value(name: str, copied: Any) -> None:
    folder, config = copied(name)
    for field in FIELDS:
        for value in HUGE if field in config else ():
            error = refused(folder, {**config, field: value})
            assert f"{field}: " in error or f"{OURS.get(field)}: " in error
            assert error.count("\n") == 0


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("value", [0, -1, True, 1.5, "64", [64], {"a": 1}, 10**9])
def test_a_count_that_is_none_is_refused(name: str, value: Any, copied: Any) -> None:
    folder, config = copied(name)
    for field in ("num_hidden_layers", "num_attention_heads", "vocab_size"):
        error = refused(folder, {**config, field: value})
        assert field in error or "num_heads" in error


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("tiny-llama", "num_hidden_layers", 9_999),
        ("tiny-deepseek_v2", "num_hidden_layers", 9_999),
        ("tiny-deepseek_v2", "n_routed_experts", 60_000),
        ("tiny-mixtral", "num_local_experts", 60_000),
    ],
)
def test_counts_within_bounds_are_held_against_the_headers(name: str, field: str, value: int, copied: Any) -> None:
    folder, config = copied(name)
    error = refused(folder, {**config, field: value})
    known = "n_routed_experts" if field == "num_local_experts" else field
    assert f"{known}: {value}" in error
    assert "but the files hold" in error
    inspect_source(open_source(_with(folder, config)))  # the remedy


def _with(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_few_missing_layers_are_still_listed_by_name(copied: Any) -> None:
    folder, config = copied("tiny-llama")
    assert "model.layers.2.input_layernorm.weight" in refused(folder, {**config, "num_hidden_layers": 3})


def test_more_groups_than_experts_are_refused(copied: Any) -> None:
    folder, config = copied("tiny-deepseek_v3")
    assert "n_group" in refused(folder, {**config, "n_group": 10**9, "topk_group": 1})


@pytest.mark.parametrize("table", ["text_config", "vision_config", "high_res_vision_config"])
def test_configs_within_the_config_are_bounded_too(table: str, tmp_path: Path) -> None:
    train_tokenizer(tmp_path / "tokenizer")
    spec = dataclasses.replace(vision.TWO, vocab_size=320)
    write_published(tmp_path / "model", spec, tmp_path / "tokenizer")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    inspect_source(open_source(tmp_path / "model"))
    for field, value in config[table].items():
        if type(value) is int and field not in ("num_channels", "bos_token_id", "eos_token_id", "pad_token_id"):
            for absurd in (0, -1, 10**9, 10**15):
                if (field, absurd) != ("max_position_embeddings", 10**9):
                    assert refused(tmp_path / "model", {**config, table: {**config[table], field: absurd}})
    if table == "high_res_vision_config":
        indexes = {**config[table], "global_attn_indexes": [0] * 1_000_000}
        assert len(refused(tmp_path / "model", {**config, table: indexes})) < 2000


def test_lists_of_millions_of_layers_are_refused(copied: Any) -> None:
    for name in ("tiny-llama", "tiny-qwen2"):
        folder, config = copied(name)
        error = refused(folder, {**config, "layer_types": ["linear_attention"] * 300_000})
        assert "layer_types" in error
        assert len(error) < 2000


def test_a_config_of_many_megabytes_is_not_parsed(copied: Any) -> None:
    folder, config = copied("tiny-llama")
    assert "more than" in refused(folder, {**config, "x": "a" * 17 * 2**20})


def test_ten_thousand_layers_are_described_in_a_moment() -> None:
    spec = dataclasses.replace(SPECS["tiny-deepseek_v2"], num_hidden_layers=10_000)
    begin = time.process_time()
    shapes = parameter_shapes(spec)
    assert time.process_time() - begin < 5  # a module for each takes twenty
    assert "layers.9999.mlp.experts.down_proj" in shapes
    with pytest.raises(SpecError, match=r"num_hidden_layers: 10001 is beyond 10000"):
        dataclasses.replace(spec, num_hidden_layers=10_001)


def headers() -> dict[str, bytes]:
    """Return headers that lie, by what is wrong with them."""
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    tables: dict[str, Any] = {
        "overlapping": {"a": entry, "b": entry},
        "a gap": {"a": entry, "b": {**entry, "data_offsets": [8, 12]}},
        "unknown type": {"a": {**entry, "dtype": "F4"}},
        "product beyond 64 bits": {"a": {**entry, "shape": [2**40, 2**40]}},
        "size beyond 64 bits": {"a": {**entry, "shape": [0, 2**70], "data_offsets": [0, 0]}},
        "strides beyond 64 bits": {"a": {**entry, "shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}},
        "many dimensions": {"a": {**entry, "shape": [1] * 1000}},
        "negative": {"a": {**entry, "shape": [-1]}},
        "a name that writes the terminal": {"\x1b]0;x\x07": entry},
        "a name of two lines": {"a\nb": entry},
        "a long name": {"a" * 1000: entry},
        "no name": {"": entry},
        "deep": {"a": json.loads("[" * 500 + "]" * 500)},
    }
    texts = {what: json.dumps(table).encode() for what, table in tables.items()}
    one = json.dumps(entry).encode()
    texts["twice"] = b'{"a":' + one + b',"a":' + one + b"}"
    small = b'{"dtype":"F32","shape":[],"data_offsets":[0,0]}'
    texts["millions"] = b"{" + b",".join(b'"%d":%b' % (i, small) for i in range(MAX_TENSORS + 1)) + b"}"
    texts["a list of millions"] = b'{"a":[' + b"0," * 5_000_000 + b"0]}"
    texts["deeper than the parser"] = b'{"a":' + b"[" * 100_000
    return texts


@pytest.mark.parametrize("what", headers())
def test_headers_that_lie_are_refused_at_little_cost(what: str, tmp_path: Path) -> None:
    path, text = tmp_path / "model.safetensors", headers()[what]
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(12))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            TensorFile.open(path)
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("shard", ["../../x.safetensors", "/etc/x.safetensors", "https://x/y.safetensors", "a\\b", 7])
def test_an_index_names_files_beside_it_only(shard: Any, tmp_path: Path, copied: Any) -> None:
    folder, config = copied("tiny-llama")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    assert "no .safetensors file of its directory" in refused(folder, config)


def test_an_index_of_many_megabytes_is_not_parsed(copied: Any) -> None:
    folder, config = copied("tiny-llama")
    (folder / "model.safetensors").unlink()
    with (folder / "model.safetensors.index.json").open("wb") as file:
        file.truncate(10 * 2**30)
    assert "more than" in refused(folder, config)


def test_a_pipe_in_place_of_a_file_does_not_wait(tmp_path: Path, copied: Any) -> None:
    folder, _ = copied("tiny-llama")
    (folder / "generation_config.json").unlink(missing_ok=True)
    os_mkfifo = getattr(__import__("os"), "mkfifo", None)
    if os_mkfifo is None:
        return
    (folder / "tokenizer_config.json").unlink()
    os_mkfifo(folder / "tokenizer_config.json")
    found = inspect_source(open_source(folder))
    assert "no regular file" in found["tokenizer"]["problem"]


def test_saved_tensors_are_still_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(save({"a": torch.ones(2), "empty": torch.zeros(0, 3)}, metadata={"note": "[,{" * 1000}))
    assert set(TensorFile.open(path).entries) == {"a", "empty"}
