"""Every plan of two and four processes computes what one process computes: losses, norms, loads, for twenty steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from fathom.model.build import build
from fathom.train.group import ALONE
from tests.parallel.cases import CASES
from tests.parallel.launch import torchrun
from tests.parallel.worker import run

LARGEST_DIFFERENCE = 1e-5
Plans = Sequence[tuple[str, Mapping[str, Any]]]

TWO: Plans = [
    ("rows", {"replicate": 2}),
    ("rows", {"shard": 2, "sharding": "zero1"}),
    ("rows", {"tensor": 2}),
    ("rows", {"expert": 2, "sharding": "zero1"}),
    ("rows", {"pipeline": 2}),
    ("rows", {"pipeline": 2, "schedule": "gpipe"}),
    ("rows", {"pipeline": 2, "schedule": "interleaved-1f1b"}),
    ("rows", {"pipeline": 2, "schedule": "zero-bubble"}),
    ("rows", {"pipeline": 2, "schedule": "dualpipe-v"}),
    ("long", {"context": 2}),
    ("long", {"context": 2, "expert": 2}),
    ("packed", {"shard": 2}),
    ("packed", {"expert": 2}),
    ("packed", {"tensor": 2}),
    ("packed", {"pipeline": 2}),
    ("grouped", {"shard": 2}),
    ("grouped", {"tensor": 2}),
    ("grouped", {"context": 2}),
    ("grouped", {"pipeline": 2}),
]
FOUR: Plans = [
    ("rows", {"replicate": 2}),
    ("rows", {"shard": 4}),
    ("rows", {"expert": 2}),
    ("rows", {"expert": 4}),
    ("rows", {"expert": 2, "replicate": 2}),
    ("rows", {"expert": 2, "tensor": 2}),
    ("rows", {"tensor": 4}),
    ("rows", {"tensor": 2, "replicate": 2}),
    ("many", {"pipeline": 4}),
    ("many", {"pipeline": 2, "sharding": "zero1"}),
    ("many", {"pipeline": 2, "replicate": 2}),
    ("many", {"pipeline": 2, "expert": 2}),
    ("many", {"pipeline": 2, "tensor": 2}),
    ("many", {"pipeline": 2, "schedule": "zero-bubble"}),
    ("many", {"pipeline": 2, "schedule": "dualpipe-v"}),
    ("long", {"context": 4}),
    ("long", {"context": 2, "expert": 4}),
    ("long", {"context": 2, "pipeline": 2}),
    ("long", {"context": 2, "tensor": 2}),
]


@lru_cache
def alone(case: str) -> dict[str, list[float]]:
    """What one process computes."""
    return run(CASES[case], ALONE, build(CASES[case].model).train())


def computed(processes: int, plans: Plans, folder: Path) -> list[dict[str, list[float]]]:
    """What each plan computes, all in one launch."""
    output = folder / "results.json"
    given = json.dumps([(case, fields) for case, fields in plans])
    done = torchrun(processes, "tests.parallel.worker", given, str(output), timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    results: list[dict[str, list[float]]] = json.loads(output.read_text())
    return results


def differences(processes: int, plans: Plans, folder: Path) -> dict[str, float]:
    """Print a table; return the largest relative difference of any loss of each plan."""
    found = {}
    for (case, fields), result in zip(plans, computed(processes, plans, folder), strict=True):
        expected = alone(case)
        assert result["load"] == expected["load"], (case, fields)
        worst = {
            name: max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(result[name], expected[name], strict=True))
            for name in ("objective", "balance", "mtp", "norm")
        }
        found[f"{processes} {case} {fields}"] = max(worst["objective"], worst["balance"], worst["mtp"])
        print(
            f"{processes} processes, {case:8} {fields!s:55}", *(f"{name} {value:.0e}" for name, value in worst.items())
        )
        assert worst["norm"] < 10 * LARGEST_DIFFERENCE
    return found


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    plans = [("rows", {"shard": 2}), ("rows", {"expert": 2, "sharding": "zero1"})]
    assert max(differences(2, plans, tmp_path).values()) < LARGEST_DIFFERENCE


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "plans"), [(2, TWO[:10]), (2, TWO[10:]), (4, FOUR[:8]), (4, FOUR[8:])])
def test_every_plan_computes_what_one_process_does(processes: int, plans: Plans, tmp_path: Path) -> None:
    assert {name: value for name, value in differences(processes, plans, tmp_path).items() if value > 1e-5} == {}
