"""A checkpoint's spec and manifest are compared with its tensors when it is opened, whoever wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fathom.checkpoint import store
from fathom.checkpoint.fathom_checkpoint import FathomCheckpoint, write_fathom
from fathom.checkpoint.weights import StateWeights
from fathom.errors import CheckpointError
from fathom.files import file_sha256
from fathom.inference.inspection import inspect_source
from fathom.model.build import build
from fathom.spec import to_mapping
from tests.published import SPECS

SPEC = SPECS["tiny-deepseek_v3"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return write_fathom(tmp_path / "x-1", StateWeights(SPEC, build(SPEC, seed=1).state_dict()))


def change(saved: Path, name: str, content: Any) -> None:
    """Replace a document and let the manifest agree with it."""
    (saved / name).write_text(json.dumps(content))
    if name != store.MANIFEST:
        manifest = json.loads((saved / store.MANIFEST).read_text())
        entry = {"bytes": (saved / name).stat().st_size, "sha256": file_sha256(saved / name)}
        manifest["files"][name] = entry
        (saved / store.MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("num_hidden_layers", 9000, r"num_hidden_layers: 900\d make .*; use the spec\.json"),
        ("num_hidden_layers", 3, r"layers\.2\..* is missing.*; use a complete checkpoint"),
        ("num_nextn_predict_layers", 9, r"mtp.* is missing.*; use a complete checkpoint"),
        ("vocab_size", 10**7, r"embed_tokens\.weight has shape \(\d+, 64\) instead of \(10000000, 64\)"),
        ("vocab_size", 2**60, "vocab_size|bytes"),
    ],
)
def test_a_spec_of_more_than_the_tensors_is_refused(saved: Path, field: str, value: int, named: str) -> None:
    inspect_source(FathomCheckpoint.open(saved))
    change(saved, "spec.json", {"model": to_mapping(SPEC) | {field: value}})
    with pytest.raises(CheckpointError, match=named) as caught:
        FathomCheckpoint.open(saved)
    assert len(str(caught.value)) < 2000


def test_tokens_that_end_an_answer_are_numbers(saved: Path) -> None:
    change(saved, "spec.json", {"model": to_mapping(SPEC), "eos_token_ids": [float("inf")]})
    with pytest.raises(CheckpointError, match="its spec cannot be used"):
        FathomCheckpoint.open(saved)


@pytest.mark.parametrize("original", [2, None, [], {}])
def test_aliases_are_names(saved: Path, original: Any) -> None:
    manifest = json.loads((saved / store.MANIFEST).read_text())
    change(saved, store.MANIFEST, manifest | {"aliases": {"model.safetensors": {"norm.weight": original}}})
    with pytest.raises(CheckpointError, match=r"manifest\.json: has aliases that are no names; restore the file"):
        FathomCheckpoint.open(saved)


def test_what_is_quoted_from_a_file_of_tensors_stays_on_one_line(tmp_path: Path) -> None:
    """Found by ``checkpoints``: the library's error quotes a data type as it stands."""
    header = json.dumps({"x": {"dtype": "a\nb" + "c" * 10**5, "shape": [], "data_offsets": [0, 0]}}).encode()
    saved = store.save(tmp_path / "x-1", tensors={}, documents={})
    (saved / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    manifest = json.loads((saved / store.MANIFEST).read_text())
    entry = {
        "bytes": (saved / "model.safetensors").stat().st_size,
        "sha256": file_sha256(saved / "model.safetensors"),
    }
    change(saved, store.MANIFEST, manifest | {"files": {"model.safetensors": entry}})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read .*; restore the file") as caught:
        store.Checkpoint.open(saved).tensors("model")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 4000
