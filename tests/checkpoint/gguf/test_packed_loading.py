"""GGUF files and other sources opened in packed formats, against the same weights read as numbers."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import pytest
import torch
from torch import Tensor

import fathom
from fathom.checkpoint.gguf import GGUFFile, write_gguf
from fathom.checkpoint.hf import HFCheckpoint, write_hf
from fathom.checkpoint.packed_loading import load_packed, plan_packing
from fathom.checkpoint.weights import StateWeights, WeightSource, load_weights
from fathom.errors import CheckpointError
from fathom.kernels.native import library
from fathom.logs import warn_once
from fathom.model import Decoder, build
from fathom.model.packing import packable
from fathom.model.quantize import quantize, set_activations
from fathom.model.quantized import QuantizedExperts, QuantizedUpProjection
from fathom.spec import ModelSpec
from tests.fuzz import gguf_files as files

SpecOf = Callable[[str], ModelSpec]
MakeState = Callable[[ModelSpec], dict[str, Tensor]]
KINDS = gguf.GGMLQuantizationType
pytestmark = pytest.mark.usefixtures("native")


def as_numbers(source: WeightSource) -> Decoder:
    model = build(source.spec, seed=None).eval()
    load_weights(model, source)
    return model


def as_packed(source: WeightSource, weights: str = "auto") -> Decoder:
    model = build(source.spec, device="meta").eval()
    load_packed(model, source, plan_packing(model, source, weights))  # type: ignore[arg-type]
    return model


def unpacked(model: Decoder, plain: Decoder) -> Iterator[tuple[str, str | None, Tensor]]:
    """Yield every parameter of a model by name, with its format and its numbers in the plain one's shape."""
    entries = packable(plain)
    for name, parameter in plain.state_dict().items():
        place, _, own = name.rpartition(".")
        module = model.get_submodule(place)
        if isinstance(module, QuantizedExperts) and name in entries:
            packed = module.gate_up if own == "gate_up_proj" else module.down
        elif isinstance(module, QuantizedUpProjection):
            packed = module.keys
        else:
            packed = getattr(module, "qweight", None) if own == "weight" else None
        if packed is None:
            yield name, None, model.state_dict()[name].view(parameter.shape)
        elif isinstance(module, QuantizedExperts):
            whole = torch.stack([packed[i].unpack() for i in range(len(packed))])  # type: ignore[union-attr]
            yield name, packed.format, whole.view(parameter.shape)
        else:
            yield name, packed.format, module.weight.view(parameter.shape)  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_file_of_any_family_is_held_as_it_is_number_for_number(
    spec: ModelSpec, kind: str, random_model: Callable[[ModelSpec], Decoder], tmp_path: Path
) -> None:
    state = random_model(spec).state_dict()
    source = GGUFFile.open(write_gguf(tmp_path / "m.gguf", StateWeights(spec, state), kind=kind))  # type: ignore[arg-type]
    plain, model = as_numbers(source), as_packed(source)
    formats = set()
    for name, format, numbers in unpacked(model, plain):
        assert torch.equal(numbers, plain.state_dict()[name]), name
        formats.add(format)
    assert formats == ({None, "q8"} if kind == "Q8_0" else {None, "q4", "q8"})
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    tokens = torch.arange(1, 9)[None]
    set_activations(model, rounded=False)
    with torch.inference_mode():
        found, expected = (x.logits(x(tokens).hidden_BTD) for x in (model, plain))
    assert float((found - expected).norm()) < 1e-5 * float(expected.norm())


@pytest.mark.parametrize(("experts", "kind"), [(0, "Q4_1"), (4, "Q4_1"), (4, "Q8_0")])
def test_the_files_of_other_writers_too(experts: int, kind: str, tmp_path: Path) -> None:
    source = GGUFFile.open(files.write_model(tmp_path / "m.gguf", kind=KINDS[kind], experts=experts))
    plain, model = as_numbers(source), as_packed(source)
    for name, format, numbers in unpacked(model, plain):
        assert torch.equal(numbers, plain.state_dict()[name]), name
        assert (format is None) == (numbers.dim() == 1 or name.endswith("mlp.gate.weight"))


def test_types_that_no_packed_format_holds_are_rounded_to_8_bits_and_the_change_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warn_once.cache_clear()
    source = GGUFFile.open(files.write_model(tmp_path / "m.gguf", kind=KINDS.Q5_1))
    with caplog.at_level(logging.WARNING):
        plain, model = as_numbers(source), as_packed(source)
    change = size = 0.0
    for name, format, numbers in unpacked(model, plain):
        weight = plain.state_dict()[name]
        step = weight.abs().amax() / 127
        assert format in (None, "q8")
        assert bool(((numbers - weight).abs() <= step * 0.55).all())
        if format is not None:
            change, size = change + float((numbers - weight).square().sum()), size + float(weight.square().sum())
    assert f"Q5_1 to 8 bits were rounded, which changes them by {(change / size) ** 0.5:.2%}" in caplog.text


@pytest.mark.parametrize(("weights", "formats"), [("int8", {"q8", "q4"}), ("int4", {"q8", "q4"})])
def test_blocks_no_wider_than_asked_for_stay(
    weights: str, formats: set[str], spec_of: SpecOf, random_state: MakeState, tmp_path: Path
) -> None:
    spec = spec_of("deepseek_v2")
    path = write_gguf(tmp_path / "m.gguf", StateWeights(spec, random_state(spec)), kind="Q4_0")
    source = GGUFFile.open(path)
    plain = as_numbers(source)
    found = {name: (format, numbers) for name, format, numbers in unpacked(as_packed(source, weights), plain)}
    assert {format for format, _ in found.values() if format} == formats
    for name in ("layers.1.mlp.experts.down_proj", "layers.1.self_attn.o_proj.weight", "lm_head.weight"):
        assert torch.equal(found[name][1], plain.state_dict()[name]), name


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_other_sources_are_packed_as_quantizing_them_afterwards_would(
    weights: str, spec_of: SpecOf, random_state: MakeState, tmp_path: Path
) -> None:
    spec = spec_of("deepseek_v3 with MTP")
    source = GGUFFile.open(write_gguf(tmp_path / "m.gguf", StateWeights(spec, random_state(spec)), kind="F32"))
    afterwards, plain = as_numbers(source), as_numbers(source)
    quantize(afterwards, weights)  # type: ignore[arg-type]
    for ours, theirs in zip(unpacked(as_packed(source, weights), plain), unpacked(afterwards, plain), strict=True):
        assert ours[:2] == theirs[:2]
        assert torch.equal(ours[2], theirs[2])


@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_fp8_blocks_are_read_into_8_bits(
    weights: str, spec_of: SpecOf, random_state: MakeState, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warn_once.cache_clear()
    spec = spec_of("deepseek_v3")
    path = write_hf(tmp_path / "fp8", StateWeights(spec, random_state(spec)), dtype="fp8")
    source = HFCheckpoint.open(path)
    in_fp8 = source.fp8_parameters
    assert {"layers.1.mlp.experts.gate_up_proj", "layers.0.self_attn.o_proj.weight"} <= in_fp8
    assert not {"embed_tokens.weight", "norm.weight", "layers.1.mlp.gate.weight"} & in_fp8
    plain = as_numbers(source)
    with caplog.at_level(logging.WARNING):
        model = as_packed(source, weights)
    change = size = 0.0
    for name, format, numbers in unpacked(model, plain):
        weight = plain.state_dict()[name]
        step = weight.abs().amax() / 127 if format == "q8" else 0.0
        assert bool(((numbers - weight).abs() <= step * 0.55).all()), name
        assert (format == "q8") == (name in packable(plain) and (weights == "int8" or name in in_fp8)), name
        if format is not None and name in in_fp8:
            change, size = change + float((numbers - weight).square().sum()), size + float(weight.square().sum())
    assert f"F8_E4M3 to 8 bits were rounded, which changes them by {(change / size) ** 0.5:.2%}" in caplog.text


def test_the_default_is_what_the_file_holds_and_plain_widens_it(
    spec_of: SpecOf, random_state: MakeState, tmp_path: Path
) -> None:
    path = files.write_model(tmp_path / "m.gguf", kind=KINDS.Q4_1)
    assert fathom.load(path, device="cpu").weights == "Q4_1"
    assert "weights Q4_1 on cpu" in repr(fathom.load(path, device="cpu"))
    assert fathom.load(path, device="cpu", weights="plain").weights == "plain"
    assert fathom.load(files.write_model(tmp_path / "f.gguf", kind=KINDS.F16), device="cpu").weights == "plain"
    spec = spec_of("deepseek_v3")
    fp8 = write_hf(tmp_path / "fp8", StateWeights(spec, random_state(spec)), dtype="fp8")
    assert fathom.load(fp8, device="cpu").weights == "Q8_0"
    assert fathom.load(fp8, device="cpu", weights="plain").weights == "plain"


def test_without_the_library_a_file_is_widened_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.write_model(tmp_path / "m.gguf", kind=KINDS.Q4_0)
    monkeypatch.setattr(library, "available", lambda: False)
    assert fathom.load(path, device="cpu").weights == "plain"
    assert fathom.load(path, device="cpu", weights="int8").weights == "int8"


def test_a_number_that_no_format_holds_is_an_error_that_names_the_parameter(
    spec_of: SpecOf, random_state: MakeState, tmp_path: Path
) -> None:
    spec = spec_of("llama")
    state = random_state(spec)
    state["layers.1.self_attn.v_proj.weight"][0, 0] = float("inf")
    source = GGUFFile.open(write_gguf(tmp_path / "m.gguf", StateWeights(spec, state), kind="F32"))
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.v_proj\.weight: "):
        as_packed(source, "int8")


PEAK = """
import sys
from pathlib import Path
from fathom.checkpoint.gguf import GGUFFile
from fathom.checkpoint.hf import HFCheckpoint
from fathom.checkpoint.packed_loading import load_packed, plan_packing
from fathom.model import build
from fathom.model.quantized import weight_bytes
path = Path(sys.argv[1])
source = HFCheckpoint.open(path) if path.is_dir() else GGUFFile.open(path)
model = build(source.spec, device="meta")
plan = plan_packing(model, source, "auto")
def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = status("VmRSS")
load_packed(model, source, plan)
print(status("VmHWM") - before, weight_bytes(model) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc says the peak there")
@pytest.mark.parametrize("kind", ["Q4_0", "fp8"])
def test_the_peak_of_memory_is_the_packed_model_and_one_parameter(kind: str, spec_of: SpecOf, tmp_path: Path) -> None:
    spec = fathom.ModelSpec(
        **{field: getattr(spec_of("llama"), field) for field in ("name", "family", "attention", "rope")},
        vocab_size=4096,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=8,
        max_position_embeddings=64,
    )
    model = build(spec, seed=0)
    weights, largest = StateWeights(spec, model.state_dict()), max(each.numel() for each in model.parameters()) // 1024
    if kind == "fp8":
        path, beside = write_hf(tmp_path / "m", weights, dtype=kind), 2 * 2 * largest  # in bfloat16, and its parts
    else:
        path, beside = write_gguf(tmp_path / "m.gguf", weights, kind="Q4_0"), 2 * largest * 18 // 32  # blocks and parts
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}  # what is freed leaves: gaps are not counted
    command = [sys.executable, "-c", PEAK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    peak, held = map(int, done.stdout.split())
    assert peak < held + beside + 12_000  # kilobytes
    assert held < sum(each.nbytes for each in model.parameters()) // 1024 / (6 if kind == "Q4_0" else 3)
