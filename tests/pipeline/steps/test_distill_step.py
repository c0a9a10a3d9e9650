"""The distill step: a teacher by step or by path, and teachers that do not fit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fathom.checkpoint import store
from fathom.checkpoint.hf import save_hf
from fathom.errors import CheckpointError, SpecError, TrainError
from fathom.inference.language_model import LanguageModel
from fathom.model import build
from fathom.pipeline.learned import check_learned
from fathom.pipeline.validation import check_order
from fathom.progress import NULL_PROGRESS
from fathom.spec.alignment import DistillStep, OpenStep
from fathom.spec.problem import FileProblems
from fathom.spec.recipe import Recipe
from fathom.spec.rollout import ChatPrompt, DistillSpec, RolloutSpec
from fathom.spec.train import AdamWSpec, Checkpointing
from fathom.tokenizer import train_bpe
from fathom.train.metrics import read_json_lines
from tests.pipeline.steps.conftest import SPEC

ROLLOUT = RolloutSpec(questions=4, group_size=2, max_tokens=6, prompt=ChatPrompt(thinking="closed"))


def distilling(teacher: str, path: str, **fields: Any) -> DistillStep:
    policy = DistillSpec(
        optimizer=AdamWSpec(lr=3e-3, weight_decay=0.0),
        rollouts=6,
        rollout=ROLLOUT,
        checkpoint=Checkpointing(every_steps=2, every_seconds=None),
    )
    return DistillStep(teacher=teacher, policy=policy, problems=(FileProblems(name="sums", path=path),), **fields)


@pytest.fixture
def asked(bench: Any) -> str:
    rows = [{"id": str(i), "question": f"{i} plus two?", "answer": str(i + 2), "split": "train"} for i in range(5)]
    return str(bench.write("sums.jsonl", rows))


@pytest.fixture
def teacher(bench: Any) -> str:
    """Another model with the same tokenizer, in the recipe's folder."""
    shape = dataclasses.replace(SPEC, hidden_size=32, num_hidden_layers=1, name="teacher")
    save_hf(bench.base / "teacher", shape, build(shape, seed=9).state_dict(), tokenizer=bench.published)
    return "teacher"


def divergences(directory: Path) -> list[float]:
    return [float(str(line["divergence"])) for line in read_json_lines(directory / "metrics.jsonl")]


def test_a_step_and_a_path_teach_alike(bench: Any, asked: str, teacher: str) -> None:
    by_path = bench.run("path", distilling(teacher, asked))
    by_step = bench.run("step", OpenStep(name="other", model=teacher), distilling("other", asked, start="base"))
    found = divergences(by_path / "distill")
    assert found == divergences(by_step / "distill")
    assert found[-1] < found[0]
    last = store.latest(by_path / "distill" / "checkpoints")
    assert last is not None
    assert (last / "tokenizer.json").exists()
    assert LanguageModel.open(by_path, device="cpu").spec.hidden_size == SPEC.hidden_size


def test_a_stopped_step_goes_on(bench: Any, asked: str, teacher: str, monkeypatch: Any) -> None:
    whole = bench.run("whole", distilling(teacher, asked))
    learn, calls = fathom_trainer().collect_rollouts, []

    def once(self: Any, number: int) -> Any:
        calls.append(number)
        if calls == [1, 2, 3, 4]:
            raise KeyboardInterrupt
        return learn(self, number)

    monkeypatch.setattr(fathom_trainer(), "collect_rollouts", once)
    with pytest.raises(KeyboardInterrupt):
        bench.run("cut", distilling(teacher, asked))
    bench.run("cut", distilling(teacher, asked), resume=True)
    assert calls[4] <= 4
    ends = [store.latest(bench.base / run / "distill" / "checkpoints") for run in ("whole", "cut")]
    weights = [store.Checkpoint.open(end).tensors("model") for end in ends if end is not None]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
    assert divergences(whole / "distill") == divergences(bench.base / "cut" / "distill")


def fathom_trainer() -> Any:
    from fathom.posttrain.distill import DistillTrainer

    return DistillTrainer


def test_a_teacher_with_another_tokenizer_is_refused(bench: Any, asked: str) -> None:
    train_bpe(["other words altogether, of other letters " * 4], vocab_size=330).save(bench.base / "words")
    spec = dataclasses.replace(SPEC, num_hidden_layers=1)
    save_hf(bench.base / "stranger", spec, build(spec).state_dict(), tokenizer=bench.base / "words")
    with pytest.raises(SpecError, match=r"steps\.distill\.teacher: stranger reads text by another tokenizer"):
        bench.run("out", distilling("stranger", asked))


def test_a_student_like_its_teacher_learns_nothing(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"lr": 1e-3, "updates": 1, "grad_norm": 0.0}) + "\n")
    with pytest.raises(TrainError, match="student and teacher agree in every token; take a teacher that is another"):
        check_learned(distilling("twin", "sums.jsonl"), tmp_path, NULL_PROGRESS)


def test_a_teacher_that_is_nowhere_is_named(bench: Any, asked: str) -> None:
    with pytest.raises(CheckpointError, match="nobody: no such file, directory or model"):
        bench.run("out", distilling("nobody", asked))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("base", r"steps\.distill\.teacher: 'base' is where the student itself starts"),
        ("later", r"steps\.distill\.teacher: no step 'later' before it can be taken; use one of base"),
    ],
)
def test_a_step_that_cannot_teach_is_refused_at_once(teacher: str, message: str) -> None:
    steps = (OpenStep(model="x"), distilling(teacher, "p.jsonl"), OpenStep(name="later", model="y"))
    with pytest.raises(SpecError, match=message):
        check_order(Recipe(name="r", steps=steps))


def test_what_was_taught_otherwise_is_not_resumed(bench: Any, asked: str, teacher: str) -> None:
    bench.run("out", distilling(teacher, asked))
    with pytest.raises(SpecError, match=r'steps\.distill\.teacher: was "teacher" .* is now "\./teacher"'):
        bench.run("out", distilling("./teacher", asked), resume=True)
    assert json.loads((bench.base / "out" / "state.json").read_text())["steps"]["distill"]["status"] == "done"
