from __future__ import annotations

import tracemalloc
from pathlib import Path

from tests.fuzz import gguf as target


def test_two_thousand_broken_files_open_or_are_refused(tmp_path: Path) -> None:
    outcome = target.fuzz(target.seeds(tmp_path), tmp_path / "fuzzed.gguf", seed=1, executions=2000)
    assert outcome.findings == []
    assert outcome.executions == 2000
    assert outcome.opened > 100
    assert outcome.refusals["CheckpointError"] > 1000


def test_a_broken_part_beside_whole_ones_opens_or_is_refused(tmp_path: Path) -> None:
    known, path = target.split_seeds(tmp_path)
    outcome = target.fuzz(known, path, seed=4, executions=400)
    assert outcome.findings == []
    assert outcome.opened > 5
    assert outcome.refusals["CheckpointError"] > 200


def test_broken_files_of_some_kilobytes_take_some_megabytes(tmp_path: Path) -> None:
    known = target.seeds(tmp_path)
    tracemalloc.start()
    outcome = target.fuzz(known, tmp_path / "fuzzed.gguf", seed=2, executions=150)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert outcome.findings == []
    assert peak < 64 * 2**20


def test_a_reader_that_fails_in_any_other_way_is_a_finding(tmp_path: Path, monkeypatch) -> None:
    def broken(path: Path) -> None:
        raise KeyError("field")

    monkeypatch.setattr(target, "exercise", broken)
    outcome = target.fuzz(target.seeds(tmp_path), tmp_path / "fuzzed.gguf", seed=3, executions=3)
    assert len(outcome.findings) == 3
    assert "KeyError: 'field'" in outcome.findings[0][0]
