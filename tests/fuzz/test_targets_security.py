from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from fathom.errors import CheckpointError
from fathom.inference.run_record import read_recipe
from fathom.spec.step_results import RECIPE_FILE
from tests.fuzz.driver import Target, all_targets, fuzz
from tests.slow_cases import fast

TARGETS = all_targets()


@pytest.mark.parametrize("name", fast(list(TARGETS), set(TARGETS) - {"run_results", "model_descriptions"}))
def test_damaged_and_hostile_inputs_are_read_or_refused(name: str) -> None:
    target = TARGETS[name]()
    with target.running():
        outcome = fuzz(target, seed=1, executions=target.short_executions)
    assert [report for report, _ in outcome.findings] == []
    assert outcome.executions == target.short_executions
    assert outcome.accepted, "no input was accepted: what is made is too damaged to reach anything"


@pytest.mark.parametrize("name", TARGETS)
def test_a_seed_gives_the_same_inputs_again(name: str) -> None:
    target = TARGETS[name]()
    with target.running():
        first, second = random.Random(3), random.Random(3)
        made = [target.make(first) for _ in range(20)]
        assert made == [target.make(second) for _ in range(20)]
    assert len(set(made)) > 5


class Broken(Target):
    name = "broken"
    seconds = 0.2

    def make(self, rng: random.Random) -> bytes:
        return rng.choice((b"fine", b"wrong", b"slow"))

    def check(self, data: bytes) -> None:
        if data == b"wrong":
            raise KeyError("field")
        while data == b"slow":
            pass


def test_any_other_error_and_a_hang_are_findings() -> None:
    target = Broken()
    with target.running():
        outcome = fuzz(target, seed=1, executions=12)
    reports = {data: report for report, data in outcome.findings}
    assert "KeyError: 'field'" in reports[b"wrong"]
    assert "TimeoutError" in reports[b"slow"]
    assert b"fine" not in reports


@pytest.mark.parametrize("manifest", ["a\0b", "\0"])
def test_a_zero_byte_in_a_recorded_recipe_is_refused(tmp_path: Path, manifest: str) -> None:
    """Found by ``recipes``: a path with one raised ValueError; a run directory may hold it as well."""
    step = {"kind": "corpus", "name": "c", "manifest": manifest}
    (tmp_path / RECIPE_FILE).write_text(json.dumps({"recipe": {"name": "x", "steps": [step]}}))
    with pytest.raises(CheckpointError, match=r"steps\[0\]\.manifest: .*zero byte; remove it.*--restart"):
        read_recipe(tmp_path)


@pytest.mark.slow
def test_the_command_runs_targets_apart_and_exits_0(tmp_path: Path) -> None:
    arguments = ["--target", "gguf", "--seconds", "1", "--out", str(tmp_path)]
    run = subprocess.run([sys.executable, "-m", "tests.fuzz", *arguments], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.split()[-1] == "0"
