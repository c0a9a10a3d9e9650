"""``fathom study``: the list, a run, and what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from fathom.progress import Progress
from fathom.study import registry
from fathom.study.registry import EXPERIMENTS, Experiment
from tests.command_line import Call
from tests.slow_cases import fast


def install(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    """Make ``tiny`` the only experiment."""
    monkeypatch.setitem(sys.modules, "tiny_experiment", SimpleNamespace(run=run))
    only = {"tiny": Experiment("tiny", "a test", "0 min", "tiny_experiment")}
    monkeypatch.setattr(registry, "EXPERIMENTS", MappingProxyType(only))


def write(directory: Path, *, seed: int, quick: bool, progress: Progress) -> dict[str, Any]:
    progress.update(0, 2, "steps", phase="step")
    for name in ("result.json", "picture.png"):
        (directory / name).write_text("{}")
    (directory / "table.md").write_text(f"seed {seed}, quick {quick}\n")
    return {}


def test_the_list_has_a_line_for_each_experiment(call: Call) -> None:
    listed = call("study")
    assert listed.code == 0
    for name, experiment in EXPERIMENTS.items():
        (line,) = [line for line in listed.out.splitlines() if line.split()[:1] == [name]]
        assert experiment.minutes in line
        assert experiment.title in line


@pytest.mark.parametrize("arguments", fast([["study"], ["study", "--help"]], [["study"]], ids=["list", "help"]))
def test_listing_imports_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from fathom.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as error: assert not error.code, error.code\n"
        "assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_can_be_loaded(name: str) -> None:
    assert callable(EXPERIMENTS[name].load())


def test_a_run_prints_its_table_and_paths(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, write)
    out = tmp_path / "new" / "folder"
    done = call("study", "tiny", "--out", out, "--seed", "4", "--quick")
    assert done.code == 0, done.err
    assert "seed 4, quick True" in done.out
    for name in ("result.json", "table.md", "picture.png"):
        assert str(out / name) in done.out.replace("\n", "")
        assert (out / name).exists()


def test_what_is_refused(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, write)
    full = tmp_path / "full"
    full.mkdir()
    (full / "table.md").write_text("mine")
    for arguments, words in (
        (("nothing", "--out", tmp_path / "x"), ("'nothing'", "tiny")),
        (("tiny",), ("--out", "name a new folder")),
        (("tiny", "--out", full), (str(full), "not empty")),
        (("tiny", "--out", tmp_path / "x", "--seed", "-1"), ("seed", "-1")),
    ):
        refused = call("study", *arguments)
        assert refused.code == 2
        assert refused.err.count("\n") == 1
        assert all(word in refused.err for word in words), refused.err
    assert (full / "table.md").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_an_empty_folder_is_used(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, write)
    assert call("study", "tiny", "--out", tmp_path).code == 0


def test_a_signal_stops_a_run_and_leaves_nothing(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(directory: Path, *, seed: int, quick: bool, progress: Progress) -> dict[str, Any]:
        (directory / "half").write_text("")
        os.kill(os.getpid(), signal.SIGINT)
        progress.update(1, 2, "steps", phase="step")
        raise AssertionError("went on")

    install(monkeypatch, interrupted)
    stopped = call("study", "tiny", "--out", tmp_path / "out")
    assert stopped.code == 130
    assert stopped.err.startswith("stopped: SIGINT arrived; nothing was written")
    assert not list(tmp_path.iterdir())
