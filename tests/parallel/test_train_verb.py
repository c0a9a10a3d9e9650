"""``torchrun -m fathom train``: a recipe's parallel table, what cannot be done, and a run that goes on alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command_line import Call
from tests.parallel.launch import ROOT, torchrun

TEXT = ROOT / "docs"


def arguments(out: Path, *further: str) -> list[str]:
    """A few steps of a small recipe over some of the documentation."""
    fields = {
        "tokenizer.vocab_size": 512,
        "model.vocab_size": 512,
        "pretrain.train.total_tokens": 8 * 256 * 6,
        "pretrain.train.batch.micro_batch_size": 4,
        "pretrain.train.evaluate_every_steps": 3,
        "pretrain.train.log_every_steps": 1,
        "pretrain.train.precision": "float32",
    }
    options = [f"--set={name}={value}" for name, value in fields.items()]
    return [
        "train",
        "recipes/quickstart.toml",
        f"--text={TEXT}",
        *options,
        "--until=pretrain",
        f"--out={out}",
        *further,
    ]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_a_recipe_as_one_does(tmp_path: Path, call: Call) -> None:
    done = torchrun(2, "fathom", *arguments(tmp_path / "two", "--set=parallel.expert=2"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("pretrain: done") == 1
    assert call(*arguments(tmp_path / "one")).code == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    generated = call("generate", str(tmp_path / "two" / "pretrain"), "--prompt", "The", "--max-tokens", "4")
    assert generated.code == 0, generated.err


@pytest.mark.slow
def test_what_does_not_divide_is_said_once_before_anything_is_made(tmp_path: Path) -> None:
    done = torchrun(2, "fathom", *arguments(tmp_path / "run", "--set=parallel.tensor=3"))
    assert done.returncode != 0
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error: ")]
    assert said == [said[0]]
    assert "parallel" in said[0]
    assert "use " in said[0]
    assert not (tmp_path / "run").exists()
