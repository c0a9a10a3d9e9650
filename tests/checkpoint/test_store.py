"""The checkpoint store: what is saved comes back, and nothing published is ever half there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fathom.checkpoint import store
from fathom.errors import CheckpointError, ResourceError


def some_tensors() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(7, 5, generator=g),
        "half": torch.randn(3, generator=g).bfloat16(),
        "count": torch.tensor(3, dtype=torch.int64),
        "none": torch.empty(0, 4),
        "flags": torch.tensor([True, False]),
    }


def save_at(root: Path, step: int) -> Path:
    documents = {"state": {"step": step, "text": "ü"}}
    return store.save(store.step_directory(root, step), tensors={"model": some_tensors()}, documents=documents)


def assert_whole(directory: Path) -> None:
    opened = store.Checkpoint.open(directory)
    for name, tensor in opened.tensors("model").items():
        assert torch.equal(tensor, some_tensors()[name])
        assert tensor.dtype == some_tensors()[name].dtype


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    directory = save_at(tmp_path / "deep" / "er", 3)
    assert directory.name == "step-00000003"
    assert_whole(directory)
    opened = store.Checkpoint.open(directory)
    assert set(opened.tensors("model")) == set(some_tensors())
    assert opened.document("state") == {"step": 3, "text": "ü"}
    assert sorted(p.name for p in directory.iterdir()) == ["manifest.json", "model.safetensors", "state.json"]
    assert [p.name for p in directory.parent.iterdir()] == [directory.name]


def test_files_are_readable_as_the_umask_allows(tmp_path: Path) -> None:
    directory = save_at(tmp_path, 1)
    modes = {path.stat().st_mode & 0o777 for path in directory.iterdir()}
    plain = tmp_path / "plain"
    plain.touch()
    assert modes == {plain.stat().st_mode & 0o777}


def test_shared_and_strided_tensors(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tied = torch.nn.Parameter(base)
    named = {"embed": tied, "head": tied, "transposed": base.t(), "column": base[:, 1], "tail": base[2:]}
    directory = store.save(tmp_path / "x-1", tensors={"model": named}, documents={})
    back = store.Checkpoint.open(directory).tensors("model")
    assert set(back) == set(named)
    for name, tensor in named.items():
        assert torch.equal(back[name], tensor)
        assert back[name].is_contiguous()
    assert back["head"] is back["embed"]
    assert "head" not in load_file(directory / "model.safetensors")


def test_an_existing_checkpoint_is_replaced_whole(tmp_path: Path) -> None:
    store.save(tmp_path / "x-1", tensors={"old": {"a": torch.ones(1)}}, documents={})
    store.save(tmp_path / "x-1", tensors={"new": {"a": torch.zeros(1)}}, documents={})
    assert [p.name for p in tmp_path.iterdir()] == ["x-1"]
    assert torch.equal(store.Checkpoint.open(tmp_path / "x-1").tensors("new")["a"], torch.zeros(1))
    with pytest.raises(CheckpointError, match=r"holds no old\.safetensors; it holds new\.safetensors"):
        store.Checkpoint.open(tmp_path / "x-1").tensors("old")


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    directory = save_at(tmp_path, 1)
    path = directory / "model.safetensors"
    whole = path.read_bytes()

    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: has \d+ bytes instead of \d+; restore the file"):
        store.Checkpoint.open(directory, verify=False)

    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: has the wrong SHA-256; .*delete"):
        store.Checkpoint.open(directory)
    store.Checkpoint.open(directory, verify=False)

    path.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is missing"):
        store.Checkpoint.open(directory)


def test_bad_manifests_are_refused(tmp_path: Path) -> None:
    directory = save_at(tmp_path, 1)
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())

    path.write_text(json.dumps(manifest | {"version": 4}))
    with pytest.raises(CheckpointError, match=r"format version 4, this Fathom reads up to 3; upgrade"):
        store.Checkpoint.open(directory)
    path.write_text(json.dumps(manifest | {"files": {"../secret": {"bytes": 0, "sha256": ""}}}))
    with pytest.raises(CheckpointError, match="outside its directory"):
        store.Checkpoint.open(directory)
    path.write_text(json.dumps({"format": "other"}))
    with pytest.raises(CheckpointError, match="is not a fathom-checkpoint"):
        store.Checkpoint.open(directory)
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest\.json: cannot be read"):
        store.Checkpoint.open(directory)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        store.Checkpoint.open(directory)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        store.Checkpoint.open(tmp_path / "nowhere")


def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for stem in ("manifest", "../up", ""):
        with pytest.raises(CheckpointError, match="file stem"):
            store.save(tmp_path / "x-1", tensors={}, documents={stem: 1})
    with pytest.raises(CheckpointError, match=r"state\.json: cannot be written as JSON"):
        store.save(tmp_path / "x-1", tensors={}, documents={"state": {"loss": float("nan")}})
    assert list(tmp_path.iterdir()) == []


def test_latest_skips_what_is_unfinished_and_prune_removes_it(tmp_path: Path) -> None:
    assert store.latest(tmp_path / "nowhere") is None
    for step in (9, 10, 100_000_000):
        save_at(tmp_path, step)
    (tmp_path / ".step-00000011.abc.partial").mkdir()
    (tmp_path / "step-200000000").mkdir()
    (tmp_path / "notes").mkdir()
    assert store.latest(tmp_path) == tmp_path / "step-100000000"
    store.prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes", "step-00000010", "step-100000000", "step-200000000"]
    with pytest.raises(ValueError, match="keep must be 1 or more"):
        store.prune(tmp_path, 0)


def test_a_replacement_cut_in_the_middle_is_undone(tmp_path: Path) -> None:
    for step in (1, 2):
        save_at(tmp_path, step).rename(tmp_path / f".step-0000000{step}.replaced")
    save_at(tmp_path, 2)
    store.prune(tmp_path, 5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
    assert_whole(tmp_path / "step-00000001")


def test_a_full_disk_leaves_earlier_checkpoints_and_no_trace(tmp_path: Path) -> None:
    save_at(tmp_path, 1)
    script = """
        import resource, signal, sys, torch
        from pathlib import Path
        from fathom.checkpoint import store
        from fathom.errors import ResourceError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        for kind in ("tensors", "documents"):
            payload = {"tensors": {"model": {"a": torch.ones(100_000)}}, "documents": {}} if kind == "tensors" else {
                "tensors": {}, "documents": {"state": "x" * 100_000}}
            try:
                store.save(Path(sys.argv[1]) / "step-2", **payload)
            except ResourceError as error:
                print(error)
    """
    done = run_script(script, tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert all("step-2: not written, the file exceeds a size limit" in line for line in lines)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert_whole(tmp_path / "step-00000001")


def test_an_unwritable_place_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="choose another folder"):
        store.save(tmp_path / "file" / "x-1", tensors={}, documents={})


def test_a_process_killed_while_saving_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    save_at(tmp_path, 1)
    script = """
        import os, sys, time, torch
        from pathlib import Path
        from fathom.checkpoint import store
        def stuck(descriptor):
            print("writing", flush=True)
            time.sleep(600)
        os.fsync = stuck
        store.save(Path(sys.argv[1]) / "step-00000002", tensors={"model": {"a": torch.ones(9)}}, documents={})
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".step-00000002.*.partial"))) == 1
    assert store.latest(tmp_path) == tmp_path / "step-00000001"
    assert_whole(tmp_path / "step-00000001")
    save_at(tmp_path, 2)
    assert_whole(tmp_path / "step-00000002")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("call", ["fsync", "replace", "unlink"])
def test_a_checkpoint_that_loses_tensors_is_whole_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    both = {"model": some_tensors(), "more": some_tensors()}
    made = store.save(tmp_path / "step-1", tensors=both, documents={"state": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, call, killed)
        with pytest.raises(KeyboardInterrupt):
            store.drop_tensors(made, "more")
    assert ("more.safetensors" in store.Checkpoint.open(made).manifest["files"]) == (call != "unlink")
    assert_whole(made)
    for _ in range(2):
        store.drop_tensors(made, "more")
        assert_whole(made)
        left = {path.name for path in made.iterdir() if not path.name.startswith(".")}
        assert left == {"model.safetensors", "state.json", "manifest.json"}


def run_script(script: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
