from __future__ import annotations

import tracemalloc

from tests.fuzz.driver import fuzz
from tests.fuzz.targets.gguf import GGUF, SplitGGUF


def test_broken_files_of_some_kilobytes_take_some_megabytes() -> None:
    target = GGUF()
    with target.running():
        tracemalloc.start()
        outcome = fuzz(target, seed=2, executions=150)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert outcome.findings == []
    assert peak < 64 * 2**20


def test_damage_reaches_what_lies_behind_the_header() -> None:
    for kind, executions, opened, refused in ((GGUF, 1000, 50, 500), (SplitGGUF, 200, 2, 100)):
        target = kind()
        with target.running():
            outcome = fuzz(target, seed=4, executions=executions)
        assert outcome.accepted > opened
        assert outcome.refusals["CheckpointError"] > refused
