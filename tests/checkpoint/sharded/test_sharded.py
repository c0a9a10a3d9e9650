"""Checkpoints that four processes save, loaded by any number of processes and by one that knows nothing of it."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fathom.checkpoint import store
from fathom.checkpoint.adapter_checkpoint import AdapterBase
from fathom.checkpoint.fathom_checkpoint import FathomCheckpoint
from fathom.checkpoint.sharded.loading import load_sharded, open_checkpoint
from fathom.errors import CheckpointError
from fathom.files import file_sha256
from tests.checkpoint.sharded import rank_cases, rank_rounds
from tests.checkpoint.sharded.processes import run_ranks
from tests.checkpoint.test_fathom_checkpoint import SPEC, state
from tests.fuzz.json_damage import damage


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four ranks left behind, the last of which was killed while it saved."""
    found = tmp_path_factory.mktemp("ranks")
    (found / "note.txt").write_text("a file beside")
    done = run_ranks(rank_cases.everything, 4, found, failing=True)
    assert sorted(path.name for path in found.glob("*.done")) == [f"rank-{rank}.done" for rank in range(3)], done.stderr
    return found


@pytest.fixture(scope="module")
def saved(folder: Path) -> Path:
    return folder / "saved" / "step-00000001"


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_one_process_reads_the_same_names_shapes_types_and_bytes(saved: Path) -> None:
    opened = store.Checkpoint.open(saved)
    found = opened.tensors("model")
    assert set(found) == {*rank_cases.SHAPES, "tied"}
    assert len(found) == len(rank_cases.SHAPES) + 1
    for name, tensor in found.items():
        expected = rank_cases.whole("cube" if name == "tied" else name)
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected), name
    assert opened.tensors("optimizer")["cube/step"] == 7
    assert opened.document("state") == {"step": 1}
    assert (saved / "note.txt").read_text() == "a file beside"
    with pytest.raises(KeyError):
        found["absent"]


def test_every_rank_writes_its_part_once(saved: Path) -> None:
    assert opened_names(saved) == {
        *(f"model-0000{rank}-of-00004.safetensors" for rank in range(4)),
        *("model.index.json", "optimizer.index.json", "state.json", "note.txt"),
    } | {path.name for path in saved.glob("optimizer-0000?-of-00004.safetensors")}
    nbytes = sum(torch.Size(shape).numel() * dtype.itemsize for dtype, shape in rank_cases.SHAPES.values())
    pieces = [path.stat().st_size for path in saved.glob("model-*")]
    assert nbytes < sum(pieces) < nbytes + 4 * 2048
    assert max(pieces) < nbytes / 4 + 2048


def opened_names(directory: Path) -> set[str]:
    return set(store.Checkpoint.open(directory).manifest["files"])


def test_a_copy_in_the_background_is_of_the_moment_it_was_asked_for(folder: Path) -> None:
    first, second = (store.Checkpoint.open(folder / "saved" / f"step-0000000{number}") for number in (2, 3))
    for name in rank_cases.SHAPES:
        assert torch.equal(first.tensors("model")[name], rank_cases.whole(name, seed=1))
        assert not second.tensors("model")[name].any()


def test_a_killed_rank_leaves_earlier_checkpoints_and_nothing_that_prune_does_not_remove(folder: Path) -> None:
    store.prune(folder / "saved", keep=3)
    assert sorted(path.name for path in (folder / "saved").iterdir()) == [f"step-0000000{n}" for n in (1, 2, 3)]
    store.Checkpoint.open(folder / "saved" / "step-00000003")


def test_a_model_is_exported_as_any_other(folder: Path) -> None:
    opened = FathomCheckpoint.open(folder / "model")
    assert opened.spec == SPEC
    assert opened.dtypes == {name: tensor.dtype for name, tensor in state().items()}
    for name, tensor in opened.stream():
        assert torch.equal(tensor, state()[name]), name
    piece = folder / "model" / "model-00002-of-00004.safetensors"
    content = piece.read_bytes()
    piece.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"model-00002-of-00004\.safetensors: has the wrong SHA-256"):
        list(opened.stream())
    piece.write_bytes(content)


def test_an_adapter_knows_the_sharded_model_it_was_trained_on(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "train" / store.CHECKPOINTS / "step-1"
    shutil.copytree(folder / "model", place)
    base = AdapterBase.of("train", place)
    assert base.find(tmp_path) == place
    manifest = json.loads((place / store.MANIFEST).read_text())
    manifest["files"]["model-00001-of-00004.safetensors"]["sha256"] = "0" * 64
    (place / store.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="is not the model that the adapter was trained on"):
        base.find(tmp_path)


def test_one_process_fills_its_tensors(saved: Path) -> None:
    wanted = {name: torch.zeros(shape) for name, (_, shape) in rank_cases.SHAPES.items()} | {
        "tied": torch.zeros(7, 5, 3)
    }
    load_sharded(open_checkpoint(saved), {"model": wanted})
    for name, tensor in wanted.items():
        assert torch.equal(tensor, rank_cases.whole("cube" if name == "tied" else name).float())


def test_the_optimizer_is_dropped_with_all_its_pieces(copy: Path) -> None:
    store.drop_tensors(copy, "optimizer")
    assert not list(copy.glob("optimizer*"))
    assert store.Checkpoint.open(copy).tensor_files("optimizer") == []
    assert len(store.Checkpoint.open(copy).tensors("model")) == len(rank_cases.SHAPES) + 1


def rewrite(directory: Path, name: str, change: Any) -> None:
    """Change a JSON file of a checkpoint, and its checksum with it."""
    path = directory / name
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    manifest = json.loads((directory / store.MANIFEST).read_text())
    manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    (directory / store.MANIFEST).write_text(json.dumps(manifest))


def moved(document: Any) -> None:
    """Say that a piece lies in another file."""
    for piece in document["tensors"]["cube"]["pieces"]:
        piece[0] = (piece[0] + 1) % 4


def retyped(document: Any) -> None:
    document["tensors"]["cube"]["dtype"] = "I32"


def overlapping(document: Any) -> None:
    document["tensors"]["cube"]["pieces"][0][2][0] += 1


def widened(document: Any) -> None:
    document["tensors"]["cube"]["shape"][0] += 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (moved, "cube@0,0,0 is missing where its index promises"),
        (retyped, r"is F32 .* where its index promises I32"),
        (overlapping, "cube: its pieces overlap"),
        (widened, "cube: its pieces leave a gap"),
    ],
)
def test_an_index_that_its_files_contradict_is_refused(copy: Path, change: Any, problem: str) -> None:
    rewrite(copy, "model.index.json", change)
    opened = store.Checkpoint.open(copy)
    with pytest.raises(CheckpointError, match=problem):
        opened.tensors("model")["cube"]
    wanted = {"model": {"cube": torch.zeros(7, 5, 3)}}
    with pytest.raises(CheckpointError, match=problem.replace("a gap", "(a gap|instead)")):
        load_sharded(opened, wanted, partial=True)


def test_a_missing_index_or_piece_is_named(copy: Path) -> None:
    (copy / "model-00003-of-00004.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00003-of-00004\.safetensors: is missing; restore"):
        store.Checkpoint.open(copy)
    (copy / "model.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"model\.index\.json: is missing; restore"):
        store.Checkpoint.open(copy, verify=False)


@pytest.mark.slow
def test_any_layout_is_loaded_in_any_other(tmp_path: Path) -> None:
    run_ranks(rank_rounds.random_layouts, 4, tmp_path)


@pytest.mark.slow
def test_ranks_killed_at_random_moments_lose_nothing_that_was_published(tmp_path: Path) -> None:
    done = run_ranks(rank_rounds.killed, 4, tmp_path, rounds=rank_rounds.ROUNDS, failing=True)
    for number in range(rank_rounds.ROUNDS):
        alive = sorted(path.name for path in (tmp_path / f"round-{number}").glob("*.done"))
        assert alive == [f"rank-{rank}.done" for rank in range(4) if rank != number % 4], done.stderr
    saved = tmp_path / "saved"
    store.prune(saved, 1)
    (left,) = saved.iterdir()
    opened = store.Checkpoint.open(left)
    step = opened.document("state")["step"]
    assert step >= rank_rounds.ROUNDS
    assert torch.equal(opened.tensors("model")["cube"], rank_cases.whole("cube", step))


def test_an_index_damaged_in_any_way_is_refused_or_read(copy: Path) -> None:
    sound, drawn = json.loads((copy / "model.index.json").read_text()), random.Random(5)
    refused = 0
    for _ in range(60):
        broken = damage(sound, drawn)
        rewrite(copy, "model.index.json", lambda document, broken=broken: replace_with(document, broken))
        try:
            dict(store.Checkpoint.open(copy, verify=False).tensors("model"))
        except CheckpointError:
            refused += 1
    assert refused > 40


def replace_with(document: dict[str, Any], other: Any) -> None:
    document.clear()
    document.update(other if isinstance(other, dict) else {"other": other})


@pytest.mark.slow
def test_fsdp_over_tensor_parallelism_is_saved_and_loaded_with_its_optimizer(tmp_path: Path) -> None:
    run_ranks(rank_rounds.fsdp, 4, tmp_path)
