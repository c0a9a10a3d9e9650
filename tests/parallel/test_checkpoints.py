"""A checkpoint of any plan goes on, on any other plan and in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.parallel.launch import torchrun
from tests.parallel.train_worker import train
from tests.train.test_trainer import lines

CASE, HALF, STEPS = "many", 3, 6


def go_on(directory: Path, processes: int, fields: dict[str, int] | None, steps: int) -> None:
    """Train until so many steps are done, on a plan or alone."""
    if fields is None:
        train(CASE, directory, steps, None)
        return
    done = torchrun(processes, "tests.parallel.train_worker", CASE, str(directory), str(steps), json.dumps(fields))
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"),
    [
        ((4, {"expert": 2, "shard": 4}), (1, None)),
        ((4, {"expert": 2, "shard": 4}), (4, {"pipeline": 4})),
        ((2, {"pipeline": 2}), (2, {"tensor": 2})),
        ((1, None), (2, {"expert": 2})),
        ((2, {"shard": 2, "sharding": "zero1"}), (1, None)),
    ],
)
def test_training_goes_on_on_another_plan(first, then, tmp_path: Path) -> None:
    train(CASE, tmp_path / "alone", STEPS, None)
    go_on(tmp_path / "parts", *first, HALF)
    go_on(tmp_path / "parts", *then, STEPS)
    expected, found = ([row["loss"] for row in lines(tmp_path / name / "metrics.jsonl")] for name in ("alone", "parts"))
    assert found == pytest.approx(expected, rel=1e-5)
