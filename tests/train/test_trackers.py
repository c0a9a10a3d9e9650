"""Trackers: every number of a line arrives, in TensorBoard, Weights & Biases (offline) and Trackio (its database)."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fathom.errors import SpecError
from fathom.train.trackers import Tracking, chosen_trackers, scalars

LINE = {"loss": 2.0, "by_source": {"code": 1.25}, "layers": ["x"], "none": None}
NUMBERS = {"loss": 2.0, "by_source/code": 1.25}


def write(name: str, directory: Path, notes: list[str]) -> int:
    trackers = Tracking(names=(name,), run="quickstart/sft").open(directory, after_step=0, note=notes.append)
    for tracker in trackers:
        tracker.write(3, LINE)
        tracker.close()
    return len(trackers)


def test_nested_numbers_have_names_joined_with_a_slash() -> None:
    assert dict(scalars(LINE)) == NUMBERS


def test_tensorboard_gets_every_number_or_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing import event_accumulator

    notes: list[str] = []
    assert write("tensorboard", tmp_path, notes) == 1
    events: Any = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))  # type: ignore[no-untyped-call]
    events.Reload()
    assert {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]} == NUMBERS
    assert events.Scalars("loss")[0].step == 3
    assert notes == []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    assert write("tensorboard", tmp_path, notes) == 0
    assert "tensorboard is left out" in notes[0]


@pytest.mark.slow
def test_weights_and_biases_is_written_offline(tmp_path: Path) -> None:
    write_elsewhere("wandb", tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
    assert list(tmp_path.glob("stage/wandb/offline-run-*/*.wandb"))


@pytest.mark.slow
def test_trackio_has_every_number_in_its_database(tmp_path: Path) -> None:
    write_elsewhere("trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    (base,) = (tmp_path / "trackio").rglob("*.db")
    with sqlite3.connect(base) as connection:
        ((step, metrics),) = connection.execute("select step, metrics from metrics").fetchall()
    assert step == 3
    assert NUMBERS.items() <= json.loads(metrics).items()


def write_elsewhere(name: str, folder: Path, **variables: str) -> None:
    """Write a line in a process and a temporary folder of its own: these libraries leave processes and files behind."""
    script = (
        "import sys; from pathlib import Path; from tests.train.test_trackers import write; notes = []; "
        "assert write(sys.argv[1], Path(sys.argv[2]), notes) == 1, notes"
    )
    (folder / "tmp").mkdir()
    subprocess.run(
        [sys.executable, "-c", script, name, str(folder / "stage")],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(folder / "tmp"), **variables},
        check=True,
        timeout=120,
    )


def test_a_tracker_that_is_not_installed_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert chosen_trackers(()) == ()
    with pytest.raises(SpecError, match=r"wandb is not installed; .*pip install .*wandb"):
        chosen_trackers(("wandb",))
