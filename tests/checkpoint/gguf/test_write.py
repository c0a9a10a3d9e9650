from __future__ import annotations

import errno
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from fathom.checkpoint.gguf.metadata import metadata_from_spec, spec_from_metadata
from fathom.checkpoint.gguf.names import gguf_rules
from fathom.checkpoint.gguf.tensor_types import stored_kinds
from fathom.checkpoint.gguf.write import write_gguf
from fathom.checkpoint.weights import StateWeights
from fathom.checkpoint.writeback import WritebackFile
from fathom.errors import CheckpointError, ResourceError
from fathom.model import Decoder
from fathom.spec import ModelSpec
from fathom.tokenizer import train_bpe
from tests.recording_progress import RecordingProgress

SpecOf = Callable[[str], ModelSpec]
MakeState = Callable[[ModelSpec], dict[str, Tensor]]
MakeModel = Callable[[ModelSpec], Decoder]
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _stored(spec: ModelSpec, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: part.contiguous() for rule in gguf_rules(spec) for name, part in rule.split(state[rule.param_name])}


def _metadata(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def test_the_gguf_library_reads_our_tensors_bit_for_bit(
    spec: ModelSpec, random_state: MakeState, tmp_path: Path
) -> None:
    state = random_state(spec)
    reader = gguf.GGUFReader(write_gguf(tmp_path / "m.gguf", StateWeights(spec, state), kind="F32"))
    wanted = _stored(spec, state)
    read = {tensor.name: tensor for tensor in reader.tensors if tensor.name != "rope_freqs.weight"}
    assert list(read) == list(wanted)
    for name, tensor in wanted.items():
        assert read[name].tensor_type.name == "F32"
        assert np.array_equal(read[name].data, tensor.numpy()), name


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_other_types_hold_what_the_library_makes_of_ours(
    kind: str, spec_of: SpecOf, random_state: MakeState, tmp_path: Path
) -> None:
    spec = spec_of("deepseek_v3")
    state = random_state(spec)
    reader = gguf.GGUFReader(write_gguf(tmp_path / "m.gguf", StateWeights(spec, state), kind=kind))  # type: ignore[arg-type]
    kinds = stored_kinds(spec, kind)  # type: ignore[arg-type]
    for tensor in reader.tensors:
        ours = _stored(spec, state)[tensor.name]
        stored = kinds[tensor.name]
        assert tensor.tensor_type.name == stored
        if stored in DTYPES:
            expected = _bytes(ours.to(DTYPES[stored]))
        else:
            expected = gguf.quants.quantize(ours.numpy(), gguf.GGMLQuantizationType[stored]).tobytes()
        assert tensor.data.tobytes() == expected, tensor.name


def test_only_matrices_lose_bits_and_the_head_fewer(spec_of: SpecOf) -> None:
    kinds = stored_kinds(spec_of("deepseek_v3"), "Q4_0")
    assert kinds["output.weight"] == "Q8_0"
    assert kinds["token_embd.weight"] == kinds["blk.1.ffn_down_exps.weight"] == "Q4_0"
    assert kinds["blk.0.attn_q_b.weight"] == "F16"  # rows of 24
    for name in ("output_norm.weight", "blk.1.ffn_gate_inp.weight", "blk.1.exp_probs_b.bias"):
        assert kinds[name] == "F32"
    assert stored_kinds(spec_of("llama biased and tied"), "Q4_0")["token_embd.weight"] == "Q8_0"


def test_metadata_says_what_the_file_is(spec_of: SpecOf, random_state: MakeState, tmp_path: Path) -> None:
    spec = spec_of("llama")
    tokenizer = train_bpe(["the cat sat on the mat\n"] * 9, vocab_size=280)
    spec = replace(spec, vocab_size=300)
    weights = StateWeights(spec, random_state(spec))
    for kind, number in (("F32", 0), ("F16", 1), ("Q4_0", 2), ("Q8_0", 7), ("BF16", 32)):
        path = write_gguf(tmp_path / f"{kind}.gguf", weights, kind=kind, tokenizer=tokenizer)  # type: ignore[arg-type]
        metadata = _metadata(gguf.GGUFReader(path))
        assert metadata["general.file_type"] == number
        assert metadata["general.quantization_version"] == 2
        assert metadata["general.name"] == "tiny-llama"
        assert len(metadata["tokenizer.ggml.tokens"]) == 300
        written = {key: value for key, (_, value) in metadata_from_spec(spec).items()}
        assert metadata.keys() >= written.keys()
    bare = _metadata(gguf.GGUFReader(write_gguf(tmp_path / "bare.gguf", weights, kind="F32")))
    assert bare["tokenizer.ggml.model"] == "none"


def test_llama_3_scaling_goes_as_a_tensor_and_comes_back(
    spec_of: SpecOf, random_state: MakeState, tmp_path: Path
) -> None:
    spec = spec_of("llama 3")
    reader = gguf.GGUFReader(write_gguf(tmp_path / "m.gguf", StateWeights(spec, random_state(spec)), kind="F16"))
    factors = reader.tensors[0]
    assert (factors.name, factors.tensor_type.name) == ("rope_freqs.weight", "F32")
    shapes = {tensor.name: tuple(map(int, tensor.shape[::-1])) for tensor in reader.tensors}
    assert spec_from_metadata(_metadata(reader), shapes, factors.data.tolist()) == spec


def test_progress_ends_at_the_bytes_written(spec_of: SpecOf, random_state: MakeState, tmp_path: Path) -> None:
    spec = spec_of("mixtral")
    progress = RecordingProgress()
    path = write_gguf(
        tmp_path / "m.gguf",
        StateWeights(spec, random_state(spec)),
        kind="Q8_0",
        progress=progress,
    )
    done = [update.done for update in progress.updates]
    assert done == sorted(done)
    assert {update.total for update in progress.updates} == {done[-1]}
    assert done[-1] == sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)


class _Counted(StateWeights):
    """Hands out fresh tensors and notes how many are alive at once."""

    __slots__ = ()
    alive: list[weakref.ref[Tensor]] = []  # noqa: RUF012
    most: list[int] = []  # noqa: RUF012

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.state.items():
            fresh = tensor.clone()
            self.alive.append(weakref.ref(fresh))
            self.most.append(sum(ref() is not None for ref in self.alive))
            yield name, fresh
            del fresh


@pytest.mark.parametrize("max_part_bytes", [None, 40_000])
def test_no_more_than_two_tensors_are_held(
    max_part_bytes: int | None, spec_of: SpecOf, random_state: MakeState, tmp_path: Path
) -> None:
    spec = spec_of("deepseek_v2")
    _Counted.most.clear()
    write_gguf(tmp_path / "m.gguf", _Counted(spec, random_state(spec)), kind="Q8_0", max_part_bytes=max_part_bytes)
    assert len(_Counted.most) == len(random_state(spec))
    assert max(_Counted.most) <= 2
    assert (len(list(tmp_path.iterdir())) > 1) == (max_part_bytes is not None)


def test_an_existing_file_is_left_alone(spec_of: SpecOf, random_state: MakeState, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("mine")
    spec = spec_of("llama")
    with pytest.raises(CheckpointError, match="already exists"):
        write_gguf(tmp_path / "m.gguf", StateWeights(spec, random_state(spec)), kind="F32")
    assert (tmp_path / "m.gguf").read_text() == "mine"


def test_a_full_disk_leaves_nothing(
    spec_of: SpecOf, random_state: MakeState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, place: int, data: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(WritebackFile, "write", full)
    spec = spec_of("llama")
    with pytest.raises(ResourceError, match="the disk is full; free disk space"):
        write_gguf(tmp_path / "m.gguf", StateWeights(spec, random_state(spec)), kind="F32")
    assert list(tmp_path.iterdir()) == []


def test_numbers_beyond_float16_are_refused_by_name(spec_of: SpecOf, random_state: MakeState, tmp_path: Path) -> None:
    spec = spec_of("llama")
    state = random_state(spec)
    state["layers.1.mlp.down_proj.weight"][3, 4] = 70_000.0
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_down\.weight: holds numbers beyond float16"):
        write_gguf(tmp_path / "m.gguf", StateWeights(spec, state), kind="F16")
    state["layers.1.mlp.down_proj.weight"][3, 4] = 1e9
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_down\.weight: "):
        write_gguf(tmp_path / "m.gguf", StateWeights(spec, state), kind="Q8_0")
    assert list(tmp_path.iterdir()) == []
    write_gguf(tmp_path / "m.gguf", StateWeights(spec, state), kind="BF16")


def test_weights_that_are_not_the_specs_are_refused(spec_of: SpecOf, random_state: MakeState, tmp_path: Path) -> None:
    spec = spec_of("llama")
    state = random_state(spec)
    last = state.popitem()
    with pytest.raises(CheckpointError, match=f"{last[0]}: expected next, got None"):
        write_gguf(tmp_path / "m.gguf", StateWeights(spec, state), kind="F32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "llama tied"])
def test_transformers_computes_our_logits_from_our_file(
    name: str, spec_of: SpecOf, random_model: MakeModel, tmp_path: Path
) -> None:
    spec = spec_of(name.split()[0])
    spec = replace(spec, tie_word_embeddings=name.endswith("tied"))
    model = random_model(spec)
    write_gguf(tmp_path / "m.gguf", StateWeights(spec, model.state_dict()), kind="F32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    assert theirs.config.model_type == ("qwen2" if name == "qwen2" else "llama")
    length = 24 if name == "mistral" else 60  # the window, which a llama of theirs has not
    tokens_BT = torch.randint(0, spec.vocab_size, (2, length))
    with torch.no_grad():
        ours = model.logits(model(tokens_BT).hidden_BTD)
        torch.testing.assert_close(theirs(tokens_BT).logits, ours, rtol=1e-5, atol=1e-5)
