"""Checkpoints of our own form: written tensor by tensor, read back bit for bit, and whole or not there."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fathom.checkpoint import store
from fathom.checkpoint.fathom_checkpoint import FathomCheckpoint, write_fathom
from fathom.checkpoint.weights import StateWeights
from fathom.errors import CheckpointError, ResourceError
from fathom.model import build
from fathom.model.build import parameter_shapes
from fathom.spec import GroupedQueryAttention, MixtureOfExperts, ModelSpec, RouterSpec, to_mapping
from fathom.tokenizer import train_bpe

BIAS = "layers.1.mlp.gate.e_score_correction_bias"
SPEC = ModelSpec(
    name="small",
    family="deepseek_v3",
    vocab_size=30,
    hidden_size=8,
    num_hidden_layers=2,
    attention=GroupedQueryAttention(num_heads=2, num_kv_heads=1, head_dim=4),
    max_position_embeddings=32,
    intermediate_size=12,
    first_k_dense_replace=1,
    moe=MixtureOfExperts(
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=6,
        router=RouterSpec(score="sigmoid", selection_bias=True),
    ),
)


def state(dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    model = build(SPEC, seed=1)
    return {name: tensor if name == BIAS else tensor.to(dtype) for name, tensor in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def test_what_is_written_comes_back_bit_for_bit(tmp_path: Path) -> None:
    written = write_fathom(tmp_path / "deep" / "model", StateWeights(SPEC, state()), eos_ids=frozenset({3, 5}))
    opened = FathomCheckpoint.open(written)
    assert (opened.spec, opened.form, opened.eos_ids) == (SPEC, "fathom", {3, 5})
    assert same(dict(opened.stream()), state())
    assert opened.dtypes == {name: tensor.dtype for name, tensor in state().items()}
    assert same(load_file(written / "model.safetensors"), {name: state()[name] for name in sorted_by_file(written)})
    assert [path.name for path in written.parent.iterdir()] == ["model"]


def sorted_by_file(directory: Path) -> list[str]:
    return list(load_file(directory / "model.safetensors"))


def test_checksums_taken_while_writing_are_those_of_the_files(tmp_path: Path) -> None:
    written = write_fathom(tmp_path / "model", StateWeights(SPEC, state()))
    files = json.loads((written / "manifest.json").read_text())["files"]
    assert files.keys() == {"spec.json", "model.safetensors"}
    for name, entry in files.items():
        content = (written / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert store.Checkpoint.open(written, verify=True).directory == written


def test_opening_reads_headers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_fathom(tmp_path / "model", StateWeights(SPEC, state()))
    damaged = bytearray((written / "model.safetensors").read_bytes())
    damaged[-1] ^= 1
    (written / "model.safetensors").write_bytes(damaged)
    monkeypatch.setattr("fathom.checkpoint.tensorfile.TensorFile.read", None)
    opened = FathomCheckpoint.open(written)
    kinds = {entry.name: entry.kind for entry in opened.stored}
    assert kinds.pop(BIAS) == "F32"
    assert set(kinds.values()) == {"BF16"}
    assert sum(entry.nbytes for entry in opened.stored) == sum(tensor.nbytes for tensor in state().values())


def test_damage_is_found_before_the_last_tensor_is_handed_out(tmp_path: Path) -> None:
    written = write_fathom(tmp_path / "model", StateWeights(SPEC, state()))
    damaged = bytearray((written / "model.safetensors").read_bytes())
    damaged[-1] ^= 1
    (written / "model.safetensors").write_bytes(damaged)
    got = []
    with pytest.raises(CheckpointError, match=r"model\.safetensors: has the wrong SHA-256"):
        got.extend(name for name, _ in FathomCheckpoint.open(written).stream())
    assert got == list(parameter_shapes(SPEC))[:-1]


def test_one_type_for_all_but_the_selection_bias(tmp_path: Path) -> None:
    written = write_fathom(tmp_path / "model", StateWeights(SPEC, state(torch.float32)), dtype=torch.bfloat16)
    back = dict(FathomCheckpoint.open(written).stream())
    assert same(back, state())
    assert back[BIAS].dtype == torch.float32


def test_one_tensor_is_held_at_a_time(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Watched:
        spec: ModelSpec = SPEC

        @property
        def dtypes(self) -> dict[str, torch.dtype]:
            return {name: tensor.dtype for name, tensor in state().items()}

        def stream(self) -> Iterator[tuple[str, Tensor]]:
            former = None
            for name, tensor in state().items():
                assert former is None or former() is None, f"the tensor before {name} is still held"
                copy = tensor.clone()
                former = weakref.ref(copy)
                yield name, copy
                del copy

    for dtype in (None, torch.float32):
        written = write_fathom(tmp_path / str(dtype), Watched(), dtype=dtype)
    assert same(dict(FathomCheckpoint.open(written).stream()), {n: t.float() for n, t in state().items()})


def test_named_templates_come_along_in_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    train_bpe(["some words and more words"], vocab_size=300).save(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    written = write_fathom(tmp_path / "one", StateWeights(SPEC, state()), tokenizer=folder)
    back = FathomCheckpoint.open(written).tokenizer()
    assert back is not None
    assert back.chat_templates == {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    store.Checkpoint.open(written, verify=True)


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    tokenizer = train_bpe(["some words and more words"], vocab_size=300)
    tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "tokenizer" / "notes.txt").write_text("not wanted")
    as_files = write_fathom(tmp_path / "one", StateWeights(SPEC, state()), tokenizer=tmp_path / "tokenizer")
    as_object = write_fathom(tmp_path / "two", StateWeights(SPEC, state()), tokenizer=tokenizer)
    for written in (as_files, as_object):
        back = FathomCheckpoint.open(written).tokenizer()
        assert back is not None
        assert back.fingerprint == tokenizer.fingerprint
        store.Checkpoint.open(written, verify=True)
    held = store.Checkpoint.open(as_files).manifest["files"].keys()
    expected = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "spec.json", "model.safetensors"}
    assert held == expected
    with pytest.raises(CheckpointError, match=r"holds no tokenizer\.json; name the directory"):
        write_fathom(tmp_path / "three", StateWeights(SPEC, state()), tokenizer=tmp_path)
    assert not (tmp_path / "three").exists()


def test_nothing_is_replaced_and_nothing_partial_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_fathom(tmp_path / "model", StateWeights(SPEC, state()))
    with pytest.raises(CheckpointError, match="already exists; choose a new directory"):
        write_fathom(written, StateWeights(SPEC, state()))
    partial = state()
    del partial["norm.weight"]
    with pytest.raises(CheckpointError, match=r"norm\.weight: the weights and their spec disagree"):
        write_fathom(tmp_path / "partial", StateWeights(SPEC, partial))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fathom.checkpoint.tensorfile.TensorFileWriter.write", full)
    with pytest.raises(ResourceError, match="not written, the disk is full; free disk space"):
        write_fathom(tmp_path / "full", StateWeights(SPEC, state()))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_config_fields_beyond_the_spec_are_kept(tmp_path: Path) -> None:
    carried = {"family": "deepseek_v3", "layout": "released", "fields": {"a": 1}, "absent": {}, "spelled": {}}
    assert (
        FathomCheckpoint.open(write_fathom(tmp_path / "a", StateWeights(SPEC, state()), carried=carried)).carried
        == carried
    )
    assert FathomCheckpoint.open(write_fathom(tmp_path / "b", StateWeights(SPEC, state()))).carried is None


def test_tied_names_of_a_training_checkpoint_are_read_through(tmp_path: Path) -> None:
    shared = state()["norm.weight"]
    tensors = state() | {"norm.weight": shared, "layers.0.input_layernorm.weight": shared}
    saved = store.save(tmp_path / "a", tensors={"model": tensors}, documents={"spec": {"model": to_mapping(SPEC)}})
    assert len(FathomCheckpoint.open(saved).stored) == len(tensors) - 1
    assert same(dict(FathomCheckpoint.open(saved).stream()), {name: tensors[name] for name in parameter_shapes(SPEC)})


def test_a_spec_of_another_version_is_refused(tmp_path: Path) -> None:
    saved = store.save(tmp_path / "a", tensors={"model": state()}, documents={"spec": {"model": {"name": "x"}}})
    with pytest.raises(CheckpointError, match=r"its spec cannot be used \(.*\); use a newer Fathom"):
        FathomCheckpoint.open(saved)
