"""The state of a run on disk, and what happens when the machine has no room."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from fathom.errors import CheckpointError, ResourceError, SpecError
from fathom.files import write_json
from fathom.inference.run_record import StepState, read_json, read_state
from fathom.pipeline.run import _locked, _translated
from fathom.pipeline.state import write_state


def test_states_survive_a_round_trip(tmp_path: Path) -> None:
    states = {"corpus": StepState(status="done", seconds=1.5, inputs="ab")}
    write_state(tmp_path, states)
    assert read_state(tmp_path) == states
    assert read_state(tmp_path / "none") == {}


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert read_json(path) == {"old": 1}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"steps": []}', '{"steps": {"a": {"status": "done"}}}'])
def test_a_damaged_state_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        read_state(tmp_path)


def test_a_full_disk_is_a_resource_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"disk of .* is full; free some space"), _translated(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ResourceError, match="memory is full"), _translated(tmp_path):
        raise MemoryError
    with pytest.raises(ResourceError, match="memory is full"), _translated(tmp_path):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
    with pytest.raises(PermissionError), _translated(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_two_processes_do_not_share_a_run(tmp_path: Path) -> None:
    with _locked(tmp_path), pytest.raises(SpecError, match="another process is running"), _locked(tmp_path):
        pass
    with _locked(tmp_path):
        pass
