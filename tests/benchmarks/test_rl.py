"""The benchmark against TRL measures what it says: the same prompts, lengths and weights on both sides."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import rl

FLAGS = {"shape": "tiny", "questions": 2, "group": 4, "prompt": 8, "answer": 12, "micro": 4, "rounds": 2, "warmup": 1}


def arguments(**changes: object) -> argparse.Namespace:
    return argparse.Namespace(**FLAGS | changes)


def test_our_side_answers_the_prompts_at_full_length_and_learns_from_every_answer(tmp_path: Path) -> None:
    reports: list[Mapping[str, Any]] = []
    trainer = rl.our_trainer(arguments(), 2, tmp_path, lambda number, values: reports.append(values))
    rollout_batch = trainer.collect_rollouts(1)
    assert [len(rollout.answer_ids) for rollout in rollout_batch.rollouts] == [12] * 8
    prompts = [[int(word[1:]) for word in text.split()] for text in rl.prompts(arguments(), 512)]
    assert [list(rollout.prompt_ids) for rollout in rollout_batch.rollouts] == [p for p in prompts for _ in range(4)]
    assert [len(prompt) for prompt in prompts] == [8, 8]
    trainer.run()
    assert len(reports) == 2
    assert all(report["zero_variance"] == 0 for report in reports)
    assert all(math.isfinite(report["update_seconds"]) for report in reports)


def test_ratios_are_of_whole_phases() -> None:
    ours, theirs = {"rollout": [9.0, 1.0], "update": [9.0, 3.0]}, {"rollout": [9.0, 4.0], "update": [9.0, 6.0]}
    found = rl.summaries(arguments(), ours, theirs)
    ratios = {phase: found[phase]["times_peer"]["fathom"] for phase in found}
    assert ratios == {"rollout": 4.0, "update": 2.0, "step": 2.5}
    assert found["rollout"]["per_second"] == {"fathom": 8 * 12 / 1.0, "trl": 8 * 12 / 4.0}
    assert found["update"]["per_second"]["fathom"] == pytest.approx(8 * 20 / 3.0, abs=0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
class TestAgainstTrl:
    def test_both_sides_take_steps_with_one_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("trl")
        flags = [part for name, value in FLAGS.items() for part in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", ["rl", *flags, "--out", str(tmp_path)])
        rl.main()
        result = json.loads((tmp_path / "rl-tiny-prompt8-answer12-cpu.json").read_text())
        assert result["largest_logprob_difference"] < 1e-4
        for phase in ("rollout", "update", "step"):
            assert {len(times) for times in result[phase]["seconds"].values()} == {2}
        step, rollout = result["step"]["seconds"]["trl"], result["rollout"]["seconds"]["trl"]
        assert all(whole > part > 0 for whole, part in zip(step, rollout, strict=True))

    def test_another_model_is_noticed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("trl")
        theirs = rl.trl_trainer(arguments(), tmp_path)
        monkeypatch.setattr(rl, "trl_trainer", lambda *_: theirs)
        with torch.no_grad():
            theirs.model.lm_head.weight.mul_(1.5)
        with pytest.raises(RuntimeError, match="do not hold the same model"):
            rl.compare(arguments(), tmp_path)
