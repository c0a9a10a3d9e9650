"""The state of a run on disk, and what happens when the machine has no room."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fathom.errors import CheckpointError, ResourceError, SpecError
from fathom.files import write_json
from fathom.inference.run_record import StepState, read_json, read_state
from fathom.pipeline.run import _locked, _translated
from fathom.pipeline.state import write_state
from fathom.spec.alignment import ConversationFile, EpochsSpec, OpenStep, SftStep
from fathom.spec.epochs import EpochBatch
from fathom.spec.train import AdamWSpec

TRAIN = EpochsSpec(
    sequence_length=8, epochs=1.0, batch=EpochBatch(size=1, micro_batch_size=1), optimizer=AdamWSpec(lr=1e-3)
)


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


OPEN, SFT = OpenStep(model="x"), SftStep(train=TRAIN, data=(ConversationFile(path="x.jsonl"),))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full; free disk space"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "permission is denied"),
        (errno.EROFS, "read-only"),
        (errno.EMFILE, "too many files open"),
        (errno.ENAMETOOLONG, "the name is too long"),
        (errno.EIO, "input/output error"),
    ],
)
def test_what_the_file_system_refuses_is_explained_by_its_number(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(ResourceError, match=f"a.bin: .*{words}.*, then --resume"), _translated(tmp_path, OPEN):
        raise OSError(number, os.strerror(number), "a.bin")
    with pytest.raises(ResourceError, match=f"{tmp_path}: .*{words}"), _translated(tmp_path, OPEN):
        raise OSError(number, os.strerror(number))


def test_other_errors_keep_their_traceback(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), _translated(tmp_path, OPEN):
        (tmp_path / "gone").read_bytes()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 bytes")])
def test_exhausted_memory_names_what_the_step_can_change(tmp_path: Path, error: Exception) -> None:
    words = r"step 'sft'; lower train\.batch\.micro_batch_size or set"
    with pytest.raises(ResourceError, match=words), _translated(tmp_path, SFT):
        raise error
    with pytest.raises(ResourceError, match="step 'base'; end other programs"), _translated(tmp_path, OPEN):
        raise error


def test_libraries_that_say_it_in_words_are_understood(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="the disk is full"), _translated(tmp_path, OPEN):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_two_processes_do_not_share_a_run(tmp_path: Path) -> None:
    with _locked(tmp_path), pytest.raises(SpecError, match="another process is running"), _locked(tmp_path):
        pass
    with _locked(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from fathom.pipeline.run import _locked\n"
        "with _locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(SpecError, match="another process is running"), _locked(tmp_path):
            pass
        holder.kill()
    with _locked(tmp_path):
        pass
