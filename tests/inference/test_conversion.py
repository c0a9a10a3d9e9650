"""Conversions: what one form holds another gives back, what is lost is said first, and nothing partial stays."""

from __future__ import annotations

import dataclasses
import filecmp
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from fathom.checkpoint.fathom_checkpoint import write_fathom
from fathom.checkpoint.hf import HFCheckpoint, save_hf
from fathom.checkpoint.weights import StateWeights
from fathom.errors import CheckpointError, FathomError, Interrupted, ResourceError, SpecError
from fathom.families import preset
from fathom.inference.conversion import Conversion
from fathom.inference.conversion_warnings import export_faults
from fathom.inference.language_model import LanguageModel
from fathom.inference.loading import open_source
from fathom.model import build
from fathom.spec import GroupLimited, LatentAttention, SamplingParams
from tests.published import SPECS, Publish
from tests.recording_progress import RecordingProgress

PROMPT = "the river sees"
GREEDY = SamplingParams(max_tokens=12, temperature=0.0)


def convert(source: Path, destination: Path, form: str, **fields: Any) -> Path:
    return Conversion.prepare(open_source(source), destination, form, **fields).run()


def tensors(path: Path) -> dict[str, Tensor]:
    return dict(open_source(path).stream())


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def our_tokens(path: Path) -> list[int]:
    model = LanguageModel.open(path)
    return model.generate([*model.tokenizer.prefix_ids, *model.tokenizer.encode(PROMPT)], GREEDY)


def their_tokens(path: Path) -> list[int]:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    given = tokenizer(PROMPT, return_tensors="pt")
    padded = (
        list(range(len(tokenizer), model.config.vocab_size)) or None
    )  # transformers would sample ids without a token
    drawn = model.generate(**given, max_new_tokens=GREEDY.max_tokens, do_sample=False, suppress_tokens=padded)
    tokens: list[int] = drawn[0, given["input_ids"].shape[1] :].tolist()
    return tokens[:-1] if tokens[-1] == model.generation_config.eos_token_id else tokens


@pytest.mark.parametrize("name", SPECS)
def test_published_to_ours_and_back_is_bit_for_bit(publish: Publish, tmp_path: Path, name: str) -> None:
    ours = convert(publish(name), tmp_path / "ours", "fathom")
    back = convert(ours, tmp_path / "back", "hf")
    files = {path.name for path in publish(name).iterdir()}
    assert {path.name for path in back.iterdir()} == files
    _, different, missing = filecmp.cmpfiles(publish(name), back, files - {"config.json"}, shallow=False)
    assert (different, missing) == ([], [])
    configs = [json.loads((place / "config.json").read_text()) for place in (publish(name), back)]
    assert configs[0] == configs[1]
    assert open_source(ours).eos_ids == open_source(publish(name)).eos_ids == {1}


@pytest.mark.parametrize("name", [name for name in SPECS if name != "tiny-deepseek"])
def test_transformers_continues_a_converted_model_alike(publish: Publish, tmp_path: Path, name: str) -> None:
    ours = convert(publish(name), tmp_path / "ours", "fathom")
    back = convert(ours, tmp_path / "back", "hf", max_shard_bytes=50_000)
    assert len(list(back.glob("model-*.safetensors"))) > 1
    assert their_tokens(back) == our_tokens(ours)


@pytest.mark.parametrize("name", SPECS)
def test_gguf_gives_every_number_back(publish: Publish, tmp_path: Path, name: str) -> None:
    file = convert(publish(name), tmp_path / "model.gguf", "gguf")
    assert same(tensors(file), {n: t for n, t in tensors(publish(name)).items() if n in tensors(file)})
    assert tensors(publish(name)).keys() - tensors(file).keys() == set()
    assert our_tokens(file) == our_tokens(publish(name))


def test_quantized_gguf_is_near_and_becomes_float32_elsewhere(publish: Publish, tmp_path: Path) -> None:
    before = tensors(publish("tiny-deepseek_v2"))
    file = convert(publish("tiny-deepseek_v2"), tmp_path / "model.gguf", "gguf", dtype="Q8_0")
    planned = Conversion.prepare(open_source(file), tmp_path / "wide", "hf")
    assert any("Q8_0 tensors become float32, number for number" in note for note in planned.warnings)
    wide = tensors(planned.run())  # a step is rounded to float16, so numbers may be 127 x 2^-11 of one further off
    assert same(wide, tensors(file))
    for name, tensor in wide.items():
        blocks = before[name].reshape(-1, 32).abs().amax(1, keepdim=True) / 127
        wrong = (tensor - before[name]).reshape(-1, 32).abs()
        assert torch.all(wrong <= blocks * 0.57), name
    assert any(not torch.equal(tensor, before[name]) for name, tensor in wide.items())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16", "BF16", "F32"])
def test_gguf_to_gguf_keeps_the_type_and_every_number(publish: Publish, tmp_path: Path, kind: str) -> None:
    first = convert(publish("tiny-deepseek_v3"), tmp_path / "first.gguf", "gguf", dtype=kind)
    planned = Conversion.prepare(open_source(first), tmp_path / "second.gguf", "gguf")
    assert planned.dtype == kind
    assert not any("float32" in note or "quantized" in note for note in planned.warnings)
    assert same(tensors(planned.run()), tensors(first))


def test_fields_of_a_config_that_we_have_no_place_for_survive(publish: Publish, tmp_path: Path) -> None:
    source = tmp_path / "source"
    save_hf(source, SPECS["tiny-mixtral"], build(SPECS["tiny-mixtral"], seed=0).state_dict())
    config = json.loads((source / "config.json").read_text()) | {"router_aux_loss_coef": 0.02, "use_cache": False}
    (source / "config.json").write_text(json.dumps(config))
    (source / "README.md").write_text("words")
    planned = Conversion.prepare(open_source(source), tmp_path / "ours", "fathom")
    assert planned.warnings == ("left out, for it is no part of the model: README.md",)
    back = convert(planned.run(), tmp_path / "back", "hf")
    assert json.loads((back / "config.json").read_text()) == config


def test_every_token_that_ends_an_answer_is_kept_or_told(publish: Publish, tmp_path: Path) -> None:
    source = convert(publish("tiny-llama"), tmp_path / "source", "hf")
    (source / "generation_config.json").write_text('{"eos_token_id": [1, 70]}')
    ours = convert(source, tmp_path / "ours", "fathom")
    back = convert(ours, tmp_path / "back", "hf")
    assert open_source(ours).eos_ids == open_source(back).eos_ids == {1, 70}
    assert json.loads((back / "generation_config.json").read_text())["eos_token_id"] == [1, 70]
    planned = Conversion.prepare(open_source(ours), tmp_path / "model.gguf", "gguf")
    assert "tokens [70] end an answer, but are not marked so" in planned.warnings
    assert open_source(planned.run()).eos_ids == {1}


@pytest.mark.parametrize("form", ["hf", "fathom"])
def test_types_are_kept_or_changed_as_asked(publish: Publish, tmp_path: Path, form: str) -> None:
    source = publish("tiny-deepseek_v3")
    kept = open_source(convert(source, tmp_path / "kept", form))
    half = open_source(convert(source, tmp_path / "half", form, dtype="BF16"))
    assert set(kept.dtypes.values()) == {torch.float32}
    biases = {name for name in half.dtypes if name.endswith("e_score_correction_bias")}
    assert biases
    assert {name for name, kind in half.dtypes.items() if kind == torch.float32} == biases
    assert {kind for name, kind in half.dtypes.items() if name not in biases} == {torch.bfloat16}
    notes = Conversion.prepare(open_source(source), tmp_path / "x", form, dtype="bfloat16").warnings
    assert notes[0] == "numbers are rounded from float32 to bfloat16"
    assert Conversion.prepare(half, tmp_path / "x", form, dtype="float32").warnings == ()


def test_the_type_chosen_for_gguf_holds_every_matrix(tmp_path: Path) -> None:
    spec = SPECS["tiny-deepseek_v3"]
    halves = {
        name: tensor if name.endswith("correction_bias") else tensor.bfloat16()
        for name, tensor in build(spec, seed=0).state_dict().items()
    }
    plain = save_hf(tmp_path / "plain", spec, halves)
    name = "layers.0.self_attn.o_proj.weight"
    mixed = save_hf(tmp_path / "mixed", spec, halves | {name: halves[name].float() + 1e-4})
    for source, kind in ((plain, "BF16"), (mixed, "F32")):
        planned = Conversion.prepare(open_source(source), source.with_suffix(".gguf"), "gguf")
        assert planned.dtype == kind
        assert not any("rounded" in note for note in planned.warnings)
        before, after = tensors(source), tensors(planned.run())
        assert all(torch.equal(before[name].float(), after[name].float()) for name in before)


def test_fp8_blocks_stay_what_they_are(publish: Publish, tmp_path: Path) -> None:
    first = convert(publish("tiny-deepseek_v3"), tmp_path / "first", "hf", dtype="fp8")
    planned = Conversion.prepare(open_source(first), tmp_path / "second", "hf")
    assert planned.dtype == "fp8"
    assert "each scale is computed anew" in planned.warnings[0]
    values = [
        {name: file.read(name) for name, file in HFCheckpoint.open(place).files.items()}
        for place in (first, planned.run())
    ]
    packed = {name for name, tensor in values[0].items() if tensor.dtype == torch.float8_e4m3fn}
    assert packed
    for name in packed:
        assert torch.equal(values[0][name].view(torch.uint8), values[1][name].view(torch.uint8))


def write_with(tmp_path: Path, number: float, name: str = "layers.0.self_attn.q_proj.weight") -> Path:
    spec = SPECS["tiny-mistral"]
    state = build(spec, seed=0).state_dict()
    state[name].view(-1)[7] = number
    return save_hf(tmp_path / "source", spec, state)


@pytest.mark.parametrize(
    ("number", "form", "dtype", "words"),
    [
        (-70000.0, "hf", "float16", r"q_proj\.weight: holds -70000, beyond float16's 65504; use bfloat16"),
        (70000.0, "fathom", "float16", "beyond float16's 65504"),
        (70000.0, "gguf", "F16", "beyond F16's 65504"),
        (float("nan"), "hf", "fp8", "q_proj.*: holds NaN or infinity, which fp8 cannot keep"),
        (float("inf"), "gguf", "Q8_0", "holds NaN or infinity, which Q8_0 cannot keep"),
    ],
)
def test_numbers_beyond_the_type_are_refused_by_name(
    tmp_path: Path, number: float, form: str, dtype: str, words: str
) -> None:
    source = write_with(tmp_path, number)
    with pytest.raises(CheckpointError, match=words):
        convert(source, tmp_path / "out", form, dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("form", "fields", "words"),
    [
        ("onnx", {}, r"--to: unknown format 'onnx'; use hf, gguf, fathom"),
        ("fathom", {"dtype": "Q8_0"}, r"format fathom has no dtype 'Q8_0'; use one of float32, float16, bfloat16"),
        ("gguf", {"dtype": "fp8"}, r"format gguf has no dtype 'fp8'; use one of F32, F16, BF16, Q8_0, Q4_0"),
        ("hf", {"dtype": "int3"}, r"--dtype: format hf has no dtype 'int3'"),
        ("hf", {"max_shard_bytes": 0}, r"--max-shard-bytes: 0 for format hf; give a number above 0"),
        ("gguf", {"max_shard_bytes": 9}, r"--max-shard-bytes: 9 for format gguf"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    publish: Publish, tmp_path: Path, form: str, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        Conversion.prepare(open_source(publish("tiny-llama")), tmp_path / "out", form, **fields)
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="out: already exists; choose a new place"):
        Conversion.prepare(open_source(publish("tiny-llama")), tmp_path / "out", "hf")


@pytest.mark.parametrize("form", ["hf", "gguf", "fathom"])
def test_a_signal_ends_it_and_nothing_stays(publish: Publish, tmp_path: Path, form: str) -> None:
    interrupt = RecordingProgress(lambda update: os.kill(os.getpid(), signal.SIGINT))
    planned = Conversion.prepare(open_source(publish("tiny-llama")), tmp_path / "out", form)
    with pytest.raises(Interrupted, match="SIGINT arrived; nothing was written"):
        planned.run(interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["hf", "gguf", "fathom"])
def test_a_place_that_cannot_be_written_is_one_line(publish: Publish, tmp_path: Path, form: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="a part of the path is a file and no folder; choose another") as caught:
        convert(publish("tiny-llama"), tmp_path / "file" / "out", form)
    assert "\n" not in str(caught.value)


def test_damage_in_our_own_form_is_never_passed_on(publish: Publish, tmp_path: Path) -> None:
    ours = convert(publish("tiny-llama"), tmp_path / "ours", "fathom")
    content = bytearray((ours / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (ours / "model.safetensors").write_bytes(content)
    for form in ("hf", "gguf", "fathom"):
        with pytest.raises(FathomError, match="wrong SHA-256"):
            convert(ours, tmp_path / "out", form)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_what_a_family_cannot_say_is_told_first(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPECS["tiny-mixtral"], family="llama")
    ours = write_fathom(tmp_path / "ours", StateWeights(spec, build(spec, seed=0).state_dict()))
    with pytest.raises(SpecError, match=r"--to: tiny-mixtral cannot be written as hf \(.*\); use --to fathom"):
        Conversion.prepare(open_source(ours), tmp_path / "out", "hf")


def test_what_cannot_be_exported_is_known_from_the_spec_alone_by_every_reason() -> None:
    """Each of what llama.cpp cannot open is refused; a model that V2-Lite's layers make different too."""
    lite = preset("deepseek-v2-lite")
    assert export_faults(lite) == {}
    assert isinstance(lite.attention, LatentAttention)
    assert lite.moe is not None
    queries = dataclasses.replace(lite, attention=dataclasses.replace(lite.attention, q_lora_rank=512))
    alone = dataclasses.replace(lite, moe=dataclasses.replace(lite.moe, n_shared_experts=0))
    single = GroupLimited(n_group=64, topk_group=32)
    groups = dataclasses.replace(
        lite, moe=dataclasses.replace(lite.moe, router=dataclasses.replace(lite.moe.router, select=single))
    )
    for spec, field in (
        (queries, "attention.q_lora_rank"),
        (alone, "moe.n_shared_experts"),
        (groups, "moe.router.select"),
    ):
        faults = export_faults(spec)
        assert set(faults) == {"gguf"}
        assert faults["gguf"].startswith(f"{field}: llama.cpp cannot open the file")
    assert set(export_faults(preset("deepseek-vl-1.3b"))) == {"gguf"}
    assert set(export_faults(preset("hash-2b"))) == {"hf", "gguf"}
