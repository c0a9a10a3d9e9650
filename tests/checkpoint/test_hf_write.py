"""What is written beside and into published weights: types, FP8 blocks, generation settings, tokenizer, progress."""

from __future__ import annotations

import dataclasses
import json
import shutil
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fathom.checkpoint import fp8
from fathom.checkpoint.hf import HFCheckpoint, write_hf
from fathom.checkpoint.hf.write import plan_weights
from fathom.checkpoint.names import to_hf
from fathom.checkpoint.tensorfile import TensorFile
from fathom.checkpoint.weights import StateWeights, load_weights
from fathom.errors import CheckpointError, ResourceError, SpecError
from fathom.families import preset
from fathom.model import build
from fathom.model.build import parameter_shapes
from fathom.spec import GroupedQueryAttention, GroupLimited, LatentAttention, MixtureOfExperts, ModelSpec, RouterSpec
from fathom.tokenizer.bpe import Tokenizer
from fathom.tokenizer.training import train_bpe
from tests.recording_progress import RecordingProgress

V3 = ModelSpec(
    name="small",
    family="deepseek_v3",
    vocab_size=300,
    hidden_size=160,
    intermediate_size=200,
    num_hidden_layers=2,
    first_k_dense_replace=1,
    num_nextn_predict_layers=1,
    attention=LatentAttention(
        num_heads=2, kv_lora_rank=24, q_lora_rank=140, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=80
    ),
    moe=MixtureOfExperts(
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=136,
        n_shared_experts=1,
        router=RouterSpec(
            score="sigmoid",
            select=GroupLimited(n_group=2, topk_group=1, group_score="top2_sum"),
            selection_bias=True,
            normalize=True,
        ),
    ),
    max_position_embeddings=64,
    bos_token_id=0,
    eos_token_id=1,
)


@dataclasses.dataclass
class Source:
    """Weights made as they are asked for; counts how many of ours are alive at once."""

    spec: ModelSpec
    dtype: torch.dtype = torch.bfloat16
    changed: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    alive: list[weakref.ref[Tensor]] = dataclasses.field(default_factory=list)
    most: int = 0

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The router's parts float32 among the rest, as a model holds them."""
        kinds = {name: torch.float32 if ".gate." in name else self.dtype for name in parameter_shapes(self.spec)}
        return kinds | {name: tensor.dtype for name, tensor in self.changed.items()}

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        for index, (name, shape) in enumerate(parameter_shapes(self.spec).items()):
            tensor = torch.randn(shape, generator=torch.Generator().manual_seed(index)).to(self.dtypes[name])
            tensor = self.changed.get(name, tensor)
            self.alive.append(weakref.ref(tensor.untyped_storage()))
            self.most = max(self.most, sum(reference() is not None for reference in self.alive))
            yield name, tensor
            del tensor

    def state(self) -> dict[str, Tensor]:
        return dict(self.stream())


def config_of(directory: Path, name: str = "config.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / name).read_text())
    return content


def stored(directory: Path) -> dict[str, Tensor]:
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_types_are_kept_where_none_is_asked_for(tmp_path: Path) -> None:
    write_hf(tmp_path / "model", Source(V3))
    expected = to_hf(V3, Source(V3).state())
    found = stored(tmp_path / "model")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {name for name, tensor in found.items() if tensor.dtype == torch.float32} == {
        name for name in expected if ".gate." in name
    }
    assert config_of(tmp_path / "model")["torch_dtype"] == "bfloat16"
    again = HFCheckpoint.open(tmp_path / "model")
    assert again.dtypes == Source(V3).dtypes
    state = Source(V3).state()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.stream())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_a_type_is_given_to_all_but_the_selection_bias(dtype: torch.dtype, tmp_path: Path) -> None:
    write_hf(tmp_path / "model", Source(V3, torch.float32), dtype=dtype)
    expected = to_hf(V3, Source(V3, torch.float32).state())
    for name, tensor in stored(tmp_path / "model").items():
        assert torch.equal(tensor, expected[name].to(torch.float32 if "e_score" in name else dtype)), name
    assert config_of(tmp_path / "model")["torch_dtype"] == str(dtype).removeprefix("torch.")


def test_fp8_is_what_the_release_stores_in_fp8(tmp_path: Path) -> None:
    """Attention, dense and expert matrices; not embedding, head, norms, router, or the prediction module's eh_proj."""
    write_hf(tmp_path / "model", Source(V3), dtype="fp8")
    found = stored(tmp_path / "model")
    matrices = {name for name, tensor in found.items() if tensor.dtype == torch.float8_e4m3fn}
    attention = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
    expected = {f"model.layers.{layer}.self_attn.{name}.weight" for layer in range(3) for name in attention}
    experts = ["experts.0", "experts.1", "experts.2", "experts.3", "shared_experts"]
    places = ["0.mlp", *(f"{layer}.mlp.{expert}" for layer in (1, 2) for expert in experts)]
    expected |= {f"model.layers.{place}.{name}_proj.weight" for place in places for name in ("gate", "up", "down")}
    assert matrices == expected
    scales = {name for name in found if name.endswith("_scale_inv")}
    assert scales == {f"{name}_scale_inv" for name in matrices}
    assert {found[name].dtype for name in scales} == {torch.float32}
    rest = {name: tensor.dtype for name, tensor in found.items() if name not in matrices | scales}
    bias = {name for name in rest if name.endswith("e_score_correction_bias")}
    assert {name for name, dtype in rest.items() if dtype != torch.bfloat16} == bias
    assert rest["model.layers.2.eh_proj.weight"] == rest["model.layers.1.mlp.gate.weight"] == torch.bfloat16
    config = config_of(tmp_path / "model")
    assert config["torch_dtype"] == "bfloat16"
    assert config["quantization_config"] == {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }


def test_deepseek_v3_in_fp8_has_the_tensors_and_bytes_of_its_release() -> None:
    """91,991 tensors of 688,574,839,360 bytes, as inspections of the released headers count them."""
    spec = preset("deepseek-v3")
    plan = plan_weights(StateWeights(spec, {name: torch.empty(0).bfloat16() for name in parameter_shapes(spec)}), "fp8")
    assert sum(len(group) for group in plan.groups.values()) == 91_991
    assert plan.total == 688_574_839_360


def test_vision_towers_stay_out_of_fp8() -> None:
    spec = preset("deepseek-vl-7b")
    plan = plan_weights(StateWeights(spec, {name: torch.empty(0).bfloat16() for name in parameter_shapes(spec)}), "fp8")
    blocks = [name for name, group in plan.groups.items() if len(group) > 1]
    assert len(blocks) == 30 * 7
    assert all(name.startswith("model.language_model.layers.") for name in blocks)


def test_fp8_is_read_back_as_bfloat16_to_within_half_a_step(tmp_path: Path) -> None:
    write_hf(tmp_path / "model", Source(V3), dtype="fp8", max_shard_bytes=100_000)
    placed = config_of(tmp_path / "model", "model.safetensors.index.json")["weight_map"]
    assert len(set(placed.values())) > 2
    assert all(placed[name] == placed[f"{name}_scale_inv"] for name in placed if f"{name}_scale_inv" in placed)
    source = HFCheckpoint.open(tmp_path / "model")
    assert {entry.kind for entry in source.stored} == {"F8_E4M3", "F32", "BF16"}
    original, found = Source(V3).state(), dict(source.stream())
    assert {name: tensor.dtype for name, tensor in found.items()} == source.dtypes
    assert list(found) == list(original)
    for name, tensor in found.items():
        if name.endswith("_bias"):
            assert torch.equal(tensor, original[name])
        else:
            assert tensor.dtype == torch.bfloat16
            error = (tensor.float() - original[name].float()).abs()
            largest = float(original[name].abs().max())
            assert (error <= original[name].float().abs() * (2**-4 + 2**-8) + largest / 448 * 2**-9).all(), name
    write_hf(tmp_path / "wide", source, carried=source.carried)
    assert "quantization_config" not in config_of(tmp_path / "wide")
    assert not any(name.endswith("_scale_inv") for name in stored(tmp_path / "wide"))


def test_scales_in_powers_of_two_are_read_and_not_claimed_when_written(tmp_path: Path) -> None:
    write_hf(tmp_path / "model", Source(V3), dtype="fp8")
    path = tmp_path / "model/model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        tensors[name] = tensors[name].log2().ceil().exp2()
        weight = name.removesuffix("_scale_inv")
        tensors[weight] = (tensors[weight].float() / 2).to(torch.float8_e4m3fn)
    save_file(tensors, path)
    config = config_of(tmp_path / "model")
    config["quantization_config"]["scale_fmt"] = "ue8m0"
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    source = HFCheckpoint.open(tmp_path / "model")
    name = "model.layers.0.mlp.down_proj.weight"
    expected = fp8.dequantize(tensors[name], tensors[f"{name}_scale_inv"])
    assert torch.equal(dict(source.stream())["layers.0.mlp.down_proj.weight"], expected)
    write_hf(tmp_path / "again", source, carried=source.carried, dtype="fp8")
    assert "scale_fmt" not in config_of(tmp_path / "again")["quantization_config"]


def test_scales_that_do_not_fit_are_faults(tmp_path: Path) -> None:
    write_hf(tmp_path / "model", Source(V3), dtype="fp8")
    path = tmp_path / "model/model.safetensors"
    good, name = load_file(path), "model.layers.0.mlp.down_proj.weight"
    scale = f"{name}_scale_inv"
    cases = {
        f"{name}: is FP8 without": {key: value for key, value in good.items() if key != scale},
        f"{scale}: is F32 of \\(1, 2\\) where blocks of \\(128, 128\\) need \\(2, 2\\)": good
        | {scale: good[scale][:1]},
        f"{scale}: is I32 of": good | {scale: good[scale].int()},
        f"1 unexpected \\({scale}\\); scales go with FP8": good | {name: good[name].bfloat16()},
        f"{name}: is F8_E5M2, which is not read": good | {name: good[name].float().to(torch.float8_e5m2)},
        "model.norm.weight: is F8_E4M3": good
        | {"model.norm.weight": good["model.norm.weight"].to(torch.float8_e4m3fn)},
    }
    for problem, tensors in cases.items():
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=f"model: .*{problem}"):
            HFCheckpoint.open(tmp_path / "model")


def test_what_is_not_finite_cannot_become_fp8(tmp_path: Path) -> None:
    name = "layers.1.mlp.experts.down_proj"
    broken = Source(V3).state()[name]
    broken[2, 3, 4] = float("nan")
    with pytest.raises(CheckpointError, match=r"experts.2.down_proj.weight: holds numbers that are not finite"):
        write_hf(tmp_path / "model", Source(V3, changed={name: broken}), dtype="fp8")
    assert list(tmp_path.iterdir()) == []


def test_one_tensor_of_ours_is_alive_at_a_time(tmp_path: Path) -> None:
    for index, dtype in enumerate((None, torch.float16, "fp8")):
        source = Source(V3)
        write_hf(tmp_path / str(index), source, dtype=dtype, max_shard_bytes=100_000)  # type: ignore[arg-type]
        assert source.most == 1


def test_filling_a_model_lets_each_tensor_go_before_the_next_is_made() -> None:
    source = Source(V3)
    model = build(V3, seed=None)
    load_weights(model, source)
    assert source.most == 1
    state = Source(V3).state()
    assert all(torch.equal(tensor, state[name].float()) for name, tensor in model.state_dict().items())


def test_progress_is_in_bytes_and_ends_at_the_total(tmp_path: Path) -> None:
    progress = RecordingProgress()
    write_hf(tmp_path / "model", Source(V3), dtype="fp8", progress=progress)
    total = sum(entry.nbytes for entry in TensorFile.open(tmp_path / "model/model.safetensors").entries.values())
    assert {(u.phase, u.total, u.unit) for u in progress.updates} == {("save", total, "bytes")}
    done = [update.done for update in progress.updates]
    assert done == sorted(done)
    assert done[-1] == total
    assert len(done) > 20


def test_weights_that_are_not_whole_leave_nothing(tmp_path: Path) -> None:
    class Broken(Source):
        def stream(self) -> Iterator[tuple[str, Tensor]]:
            for name, tensor in super().stream():
                if name != "norm.weight":
                    yield name, tensor

    class Short(Source):
        def stream(self) -> Iterator[tuple[str, Tensor]]:
            yield from list(super().stream())[:-1]

    class Nameless(Source):
        @property
        def dtypes(self) -> dict[str, torch.dtype]:
            return {name: kind for name, kind in super().dtypes.items() if name != "norm.weight"}

    faults = {
        r"lm_head.weight: \(300, 160\) came where norm.weight of \(160,\) was due": Broken(V3),
        r"nothing more: .* came where mtp.0.norm.weight": Short(V3),
        r"1 missing \(norm.weight\)": Nameless(V3),
        r"norm.weight: \(3,\) came where norm.weight of \(160,\)": Source(V3, changed={"norm.weight": torch.ones(3)}),
    }
    for problem, source in faults.items():
        with pytest.raises(CheckpointError, match=problem):
            write_hf(tmp_path / "model", source)
        assert list(tmp_path.iterdir()) == []


def test_a_type_that_is_not_published_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"dtype: .*torch.int8; use one of float32, bfloat16, float16, fp8"):
        write_hf(tmp_path / "model", Source(V3), dtype=torch.int8)


def test_a_disk_too_small_is_said_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6, 1000))
    with pytest.raises(ResourceError, match=r"needs [\d,]+ bytes and 1,000 are free; free disk space"):
        write_hf(tmp_path / "model", Source(V3))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["a few words are enough here"] * 3, vocab_size=290)


DENSE = ModelSpec(
    name="dense",
    family="llama",
    vocab_size=300,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    attention=GroupedQueryAttention(num_heads=1, num_kv_heads=1, head_dim=8),
    max_position_embeddings=16,
)


def test_generation_settings_name_every_end(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def settings(name: str, spec: ModelSpec, **given: Any) -> dict[str, Any] | None:
        directory = write_hf(tmp_path / name, StateWeights(spec, Source(spec).state()), **given)
        path = directory / "generation_config.json"
        return config_of(directory, path.name) if path.exists() else None

    named = dataclasses.replace(DENSE, bos_token_id=5, eos_token_id=7, pad_token_id=-1)
    assert settings("nothing known", DENSE) is None
    assert settings("from the spec", named) == {"bos_token_id": 5, "eos_token_id": 7}
    assert settings("several", named, eos_ids={9, 7, 3}) == {"bos_token_id": 5, "eos_token_id": [7, 3, 9]}
    assert settings("one", DENSE, eos_ids={4}) == {"eos_token_id": 4}
    own = {"bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id, "eos_token_id": tokenizer.eos_id}
    assert settings("from the tokenizer", DENSE, tokenizer=tokenizer) == own
    folder = tmp_path / "tokenizer"
    tokenizer.save(folder)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "eos_token_id": [8, 9]}))
    assert settings("carried", named, tokenizer=folder) == {
        "temperature": 0.6,
        "bos_token_id": 5,
        "eos_token_id": [8, 9],
    }
    assert HFCheckpoint.open(tmp_path / "carried").eos_ids == {1, 7, 8, 9}


def test_named_templates_come_along(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    tokenizer.save(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    (folder / "chat_template.json").write_text('{"chat_template": "unread"}')
    found = HFCheckpoint.open(write_hf(tmp_path / "model", Source(DENSE), tokenizer=folder)).tokenizer()
    assert found is not None
    assert found.chat_templates == {"default": tokenizer.chat_template, "tool_use": "{{ tools }}"}
    assert (tmp_path / "model" / "chat_template.json").is_file()


def test_a_tokenizer_is_written_whole(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_hf(tmp_path / "model", Source(DENSE), tokenizer=tokenizer)
    found = HFCheckpoint.open(tmp_path / "model").tokenizer()
    assert found is not None
    assert found.fingerprint == tokenizer.fingerprint
    assert found.chat_template == tokenizer.chat_template
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
