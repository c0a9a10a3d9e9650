"""torch.compile changes the speed of training, not its numbers. Slow: the compiler takes minutes on two cores."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_steps_have_the_losses_of_plain_ones(make_trainer: Any, tmp_path: Path) -> None:
    losses = {}
    for compiled in (False, True):
        directory = tmp_path / str(compiled)
        trainer = make_trainer(directory)
        trainer.spec = replace(trainer.spec, compile=compiled, total_tokens=3 * 4 * 16, log_every_steps=1)
        trainer.run()
        lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses[compiled] = [json.loads(line)["loss"] for line in lines]
    assert len(losses[True]) == 3
    assert losses[True] == pytest.approx(losses[False], abs=1e-4)
