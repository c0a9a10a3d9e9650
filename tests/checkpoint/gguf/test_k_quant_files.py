"""Mixtures of K-quants, as most published files are: held in 8 bits on a CPU, and how much that loses is stated."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from fathom.checkpoint.gguf import GGUFFile, write_gguf
from fathom.checkpoint.hf import load_hf, save_hf
from fathom.checkpoint.weights import StateWeights
from fathom.errors import CheckpointError
from fathom.inference.conversion import Conversion
from fathom.inference.decoder_loading import load_decoder, planned_forms
from fathom.inference.loading import open_source
from fathom.logs import warn_once
from fathom.model.packing import packable
from fathom.model.quantized import weight_bytes
from fathom.spec import ModelSpec
from tests.checkpoint.gguf import k_quants
from tests.checkpoint.gguf.k_quants import KINDS
from tests.checkpoint.gguf.test_packed_loading import unpacked

SpecOf = Callable[[str], ModelSpec]
MakeState = Callable[[ModelSpec], dict[str, Tensor]]
CPU = torch.device("cpu")
MIXTURES = {"Q4_K_M": KINDS.Q4_K, "Q5_K_M": KINDS.Q5_K, "Q6_K": KINDS.Q6_K}
pytestmark = pytest.mark.usefixtures("native")


def kind_of(mixture: str) -> Callable[[str], gguf.GGMLQuantizationType]:
    """The M mixtures hold what matters most in Q6_K: values, down-projections and the head."""

    def find(name: str) -> gguf.GGMLQuantizationType:
        sensitive = any(part in name for part in ("attn_v", "ffn_down", "output.weight"))
        return KINDS.Q6_K if sensitive and "attn_output" not in name else MIXTURES[mixture]

    return find


@pytest.fixture
def write(spec_of: SpecOf, random_state: MakeState, tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a small model of a family, wide enough for whole blocks of 256."""

    def written(family: str, mixture: str) -> Path:
        spec = replace(spec_of(family), hidden_size=256, intermediate_size=256)
        if spec.moe is not None:
            spec = replace(spec, moe=replace(spec.moe, moe_intermediate_size=256))
        floats = write_gguf(tmp_path / "floats.gguf", StateWeights(spec, random_state(spec)), kind="F32")
        path = tmp_path / f"{family}-{mixture}.gguf"
        numbers = k_quants.requantized(floats, path, kind_of(mixture))
        stored = {info.name: info for info in gguf.GGUFReader(path).tensors}
        for name, wanted in numbers.items():
            assert np.array_equal(gguf.dequantize(stored[name].data, stored[name].tensor_type), wanted)
        return path

    return written


@pytest.mark.parametrize("kind", [KINDS.Q4_K, KINDS.Q5_K, KINDS.Q6_K])
def test_the_blocks_of_these_tests_are_near_the_numbers_they_were_made_of(kind: gguf.GGMLQuantizationType) -> None:
    numbers = np.random.default_rng(0).standard_normal((6, 512), dtype=np.float32)
    numbers[0] = 0
    numbers[1] = np.abs(numbers[1])
    found = gguf.dequantize(k_quants.quantize(numbers, kind), kind)
    bits = {KINDS.Q4_K: 4, KINDS.Q5_K: 5, KINDS.Q6_K: 6}[kind]
    reach = np.abs(numbers).reshape(6, -1, 256).max(-1).repeat(256).reshape(numbers.shape)
    assert bool((np.abs(found - numbers) <= 2 * reach / 2**bits).all())
    assert not found[0].any()


@pytest.mark.parametrize(("family", "mixture"), [("llama", "Q5_K_M"), ("llama", "Q6_K"), ("deepseek_v2", "Q4_K_M")])
def test_a_mixture_is_held_in_8_bits_as_planned_and_the_change_is_stated(
    family: str, mixture: str, write: Callable[[str, str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    warn_once.cache_clear()
    source = GGUFFile.open(write(family, mixture))
    plain = load_decoder(source, CPU, torch.float32, "plain")
    with caplog.at_level(logging.WARNING):
        model = load_decoder(source, CPU, torch.float32, "auto")
    forms = planned_forms(source, CPU, torch.float32, "auto")
    planned = {name: form for form in forms for name in form.parameters}
    change = size = 0.0
    for name, format, numbers in unpacked(model, plain):
        weight, form = plain.state_dict()[name], planned.pop(name)
        assert (format == "q8") == (name in packable(plain)) == (form.format == "Q8_0"), name
        assert form.rounded == (format == "q8" and form.stored != ("Q8_0",)), name
        if not form.rounded:
            assert torch.equal(numbers, weight), name
            continue
        change, size = change + float((numbers - weight).square().sum()), size + float(weight.square().sum())
    assert not planned
    assert sum(form.nbytes for form in forms) == weight_bytes(model)
    assert f"which changes them by {(change / size) ** 0.5:.2%} (root mean square); plain keeps them" in caplog.text
    assert "Q6_K to 8 bits" in caplog.text
    assert change / size < 0.006**2


def test_a_mixture_becomes_a_directory_and_a_file_of_floats_with_every_number(
    write: Callable[[str, str], Path], tmp_path: Path
) -> None:
    path = write("llama", "Q4_K_M")
    directory = Conversion.prepare(open_source(path), tmp_path / "hf", "hf").run()
    floats = Conversion.prepare(open_source(directory), tmp_path / "f.gguf", "gguf", dtype="F32").run()
    before, after = ({info.name: info for info in gguf.GGUFReader(each).tensors} for each in (path, floats))
    assert before.keys() == after.keys()
    for name, info in before.items():
        numbers = gguf.dequantize(info.data, info.tensor_type)
        assert np.array_equal(numbers, np.asarray(after[name].data)), name


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_blocks_survive_the_way_through_a_directory_of_floats(
    kind: str, spec_of: SpecOf, random_state: MakeState, tmp_path: Path
) -> None:
    spec = spec_of("deepseek_v2")
    path = write_gguf(tmp_path / "m.gguf", StateWeights(spec, random_state(spec)), kind=kind)  # type: ignore[arg-type]
    directory = Conversion.prepare(open_source(path), tmp_path / "hf", "hf").run()
    again = Conversion.prepare(open_source(directory), tmp_path / "again.gguf", "gguf", dtype=kind).run()
    models = [load_decoder(GGUFFile.open(each), CPU, torch.float32, "auto") for each in (path, again)]
    plain = load_decoder(GGUFFile.open(path), CPU, torch.float32, "plain")
    first, second = (list(unpacked(model, plain)) for model in models)
    for (name, format, numbers), (_, form, others) in zip(first, second, strict=True):
        assert (format, torch.equal(numbers, others)) == (form, True), name


def test_a_model_that_is_held_packed_is_not_written_without_its_weights(
    spec_of: SpecOf, random_state: MakeState, tmp_path: Path
) -> None:
    spec = spec_of("llama")
    path = write_gguf(tmp_path / "m.gguf", StateWeights(spec, random_state(spec)), kind="Q8_0")
    packed, plain = (load_decoder(GGUFFile.open(path), CPU, torch.float32, each) for each in ("auto", "plain"))
    with pytest.raises(CheckpointError, match="or open it with plain weights"):
        save_hf(tmp_path / "hf", spec, packed.state_dict())
    assert not (tmp_path / "hf").exists()
    save_hf(tmp_path / "hf", spec, plain.state_dict())
    for name, tensor in load_hf(tmp_path / "hf")[1].items():
        assert torch.equal(tensor, plain.state_dict()[name]), name
