"""The reference of a policy and the checkpoints that need it: a run that is killed anywhere can be resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fathom.checkpoint import store
from fathom.errors import CheckpointError
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.posttrain.reference import STATE_KEY, ReferenceModel
from fathom.signals import StopRequest
from fathom.spec.train import AdamWSpec, Checkpointing, UpdateSpec
from fathom.train.stage import Stage
from fathom.train.state import Position
from tests.posttrain.conftest import DENSE, SPEC, MakePolicy
from tests.slow_cases import fast

STEPS = 4


class Crash(BaseException):
    """The process is dead: nothing that follows reaches the disk."""


class Policy:
    """A stage whose steps move the weights towards the reference and away from it: equal ends need equal references."""

    def __init__(self, directory: Path, *, keep: int, every_steps: int, reference_every: int = 1) -> None:
        self.model: Decoder = build(DENSE, seed=1)
        self.reference = ReferenceModel(self.model, directory, reference_every)
        self.recorded: int | None = None
        spec = UpdateSpec(
            optimizer=AdamWSpec(lr=1.0),
            checkpoint=Checkpointing(every_steps=every_steps, every_seconds=None, keep=keep),
        )
        self.stage = Stage(directory, model=self.model, spec=spec, source=self, note=lambda message: None)

    def state(self) -> dict[str, Any]:
        return {STATE_KEY: self.reference.step}

    def restore(self, state: dict[str, Any]) -> None:
        self.recorded = state[STATE_KEY]

    def step(self, before: Position) -> Position:
        number = before.step + 1
        with torch.no_grad():
            for mine, theirs in zip(self.model.parameters(), self.reference.model.parameters(), strict=True):
                mine.mul_(0.5).add_(theirs, alpha=0.25).add_(0.01 * number)
        self.reference.after(number)
        return Position(number, number, 0.0, 0.0)

    def run(self) -> dict[str, Tensor]:
        self.reference.begin(self.stage.start(resume=True).step, self.recorded)
        with StopRequest() as stop:
            self.stage.run(self.step, more=lambda now: now.step < STEPS, stop=stop, sync=lambda: None)
        named = {
            f"{kind}.{k}": v for kind in ("model", "reference") for k, v in self._module(kind).state_dict().items()
        }
        return {name: tensor.clone() for name, tensor in named.items()}

    def _module(self, kind: str) -> Decoder:
        return self.model if kind == "model" else self.reference.model


@contextmanager
def crashing(at: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Die before the ``at``-th change of a directory, counted from 0; what is yielded names those that happened."""
    done: list[str] = []

    def wrap(name: str) -> None:
        change = getattr(os, name)

        def changed(*args: Any, **kwargs: Any) -> Any:
            if len(done) >= at:
                raise Crash
            done.append(name)
            return change(*args, **kwargs)

        patched.setattr(os, name, changed)

    with monkeypatch.context() as patched:
        for name in ("replace", "rename", "unlink", "rmdir"):
            wrap(name)
        yield done


@pytest.mark.parametrize(
    ("keep", "every_steps"), fast([(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)], [(1, 1), (3, 2)])
)
def test_a_run_that_dies_at_any_change_of_the_disk_is_resumed_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int, every_steps: int
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    whole = Policy(tmp_path / "whole", keep=keep, every_steps=every_steps).run()
    at = 0
    while True:
        directory = tmp_path / str(at)
        try:
            with crashing(at, monkeypatch):
                Policy(directory, keep=keep, every_steps=every_steps).run()
            break
        except Crash:
            at += 1
        resumed = Policy(directory, keep=keep, every_steps=every_steps).run()
        for name, tensor in whole.items():
            assert torch.equal(tensor, resumed[name]), (at, name)
    assert at >= 2 * STEPS


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_every_checkpoint_that_is_kept_can_be_resumed_from(tmp_path: Path, keep: int) -> None:
    made = {"keep": keep, "every_steps": 2, "reference_every": 1}
    whole = Policy(tmp_path, **made).run()
    checkpoints = store.list_checkpoints(tmp_path / "checkpoints")
    named = {store.Checkpoint.open(path).document("state")["loader"][STATE_KEY] for path in checkpoints}
    assert named == {2, 4} if keep > 1 else {4}
    assert {int(path.stem[-8:]) for path in tmp_path.glob("reference-*.safetensors")} >= named
    for later in checkpoints[:0:-1]:
        store.prune(tmp_path / "checkpoints", keep=9)
        later.rename(tmp_path / later.name)
        resumed = Policy(tmp_path, **made).run()
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_references_that_nothing_names_are_removed(tmp_path: Path) -> None:
    Policy(tmp_path, keep=1, every_steps=4).run()
    unfinished = tmp_path / ".reference-00000001.safetensors.abcdef.partial"
    unfinished.touch()
    reference = ReferenceModel(build(DENSE, seed=1), tmp_path, 1)
    for done in (5, 6, 7):
        reference.after(done)
    assert sorted(path.name for path in tmp_path.glob("reference-*")) == [
        "reference-00000004.safetensors",
        "reference-00000007.safetensors",
    ]
    assert not unfinished.exists()


def test_a_checkpoint_that_names_no_reference_needs_the_one_its_step_implies(tmp_path: Path) -> None:
    Policy(tmp_path, keep=1, every_steps=3, reference_every=2).run()
    newest = store.latest(tmp_path / "checkpoints")
    assert newest is not None
    state = store.Checkpoint.open(newest).document("state")
    del state["loader"][STATE_KEY]
    store.save(newest, tensors={}, documents={"state": state})
    ReferenceModel(build(DENSE, seed=1), tmp_path, 2).after(6)
    assert (tmp_path / "reference-00000004.safetensors").exists()


def test_a_lost_reference_is_named(tmp_path: Path) -> None:
    Policy(tmp_path, keep=1, every_steps=1).run()
    (tmp_path / f"reference-{STEPS:08d}.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=rf"reference-{STEPS:08d}.*cannot be read.*start again in a new directory"
    ):
        Policy(tmp_path, keep=1, every_steps=1).run()


SCRIPT = """
    import os, signal, sys
    from dataclasses import replace
    from pathlib import Path
    from fathom.spec.train import Checkpointing
    from tests.posttrain.conftest import SPEC, new_policy, reference_tokenizer
    keep, at = int(sys.argv[2]), int(sys.argv[3])
    spec = replace(SPEC, reference_every=1, checkpoint=Checkpointing(every_steps=2, every_seconds=None, keep=keep))
    trainer, done = new_policy(reference_tokenizer(), Path(sys.argv[1]), spec), 0
    def wrap(change):
        def changed(*args, **kwargs):
            global done
            done += 1
            if done > at:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **kwargs)
        return changed
    for name in ("replace", "rename", "unlink"):
        setattr(os, name, wrap(getattr(os, name)))
    trainer.run()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")
@pytest.mark.parametrize(("keep", "at"), fast([(1, 13), (3, 6)], [(3, 6)]))
def test_a_killed_policy_resumes_to_the_same_end(tmp_path: Path, make_policy: MakePolicy, keep: int, at: int) -> None:
    checkpointing = Checkpointing(every_steps=2, every_seconds=None, keep=keep)
    spec = replace(SPEC, reference_every=1, checkpoint=checkpointing)
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "killed"), str(keep), str(at)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(["", *sys.path])}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed, whole = (make_policy(tmp_path / name, spec) for name in ("killed", "whole"))
    resumed.run(resume=True)
    whole.run()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
