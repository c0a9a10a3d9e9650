"""Every remedy that an error of training names, followed at --resume: the run then ends as it should."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fathom.checkpoint import store
from fathom.errors import Interrupted, ResourceError, RewardError, SpecError, TrainError
from fathom.inference.run_record import read_state
from fathom.pipeline.recipe import make_recipe
from fathom.spec import to_mapping
from fathom.spec.alignment import ConversationFile, GrpoStep, OpenStep, SftStep
from fathom.spec.epochs import EpochBatch
from fathom.spec.problem import FileProblems
from fathom.spec.rewards import FormatReward, FunctionReward
from fathom.spec.rollout import ChatPrompt, PolicySpec, RolloutSpec
from fathom.spec.train import AdamWSpec, Checkpointing, Constant
from fathom.train.metrics import read_changes
from fathom.train.step import StepRunner

Passes = Callable[..., Any]
Breaks = Callable[[Any], bool]
ASKED = ("two plus three?", "three plus three?", "two plus two?", "one plus two?")
REWARDS = (FunctionReward(target="chars_of_answers:chars"), FormatReward(weight=0.5))


@pytest.fixture
def sft(bench: Any, passes: Passes) -> Callable[..., SftStep]:
    said = [{"role": "assistant", "content": "It is five."}]
    rows = [{"messages": [{"role": "user", "content": asked}, *said]} for asked in ASKED]
    data = (ConversationFile(path=bench.write("talks.jsonl", rows), repeat=2),)

    def step(epochs: float = 10, **fields: Any) -> SftStep:
        given = {"sequence_length": 32, "batch": EpochBatch(size=2, micro_batch_size=2)} | fields
        return SftStep(train=passes(epochs, **given), data=data)

    return step


@pytest.fixture
def grpo(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., GrpoStep]:
    (bench.base / "chars_of_answers.py").write_text(
        "def chars(prompt, answer, reference):\n    return len(answer) % 7\n"
    )
    monkeypatch.syspath_prepend(str(bench.base))
    rows = [{"id": str(i), "question": asked, "answer": "?", "split": "train"} for i, asked in enumerate(ASKED)]
    problems = (FileProblems(name="sums", path=bench.write("sums.jsonl", rows)),)

    def step(rewards: Any = REWARDS, **fields: Any) -> GrpoStep:
        given: dict[str, Any] = {
            "optimizer": AdamWSpec(lr=3e-3, weight_decay=0.0),
            "rollouts": 5,
            "rollout": RolloutSpec(questions=2, group_size=2, max_tokens=6, prompt=ChatPrompt(thinking="closed")),
            "checkpoint": Checkpointing(every_steps=1, every_seconds=None, keep_optimizer=True),
        }
        return GrpoStep(policy=PolicySpec(**(given | fields)), problems=problems, rewards=rewards)

    return step


def break_after(monkeypatch: pytest.MonkeyPatch, steps: int, act: Callable[[Any], Any]) -> None:
    """Call ``act`` with the spec after so many optimizer steps; what it returns becomes the step's objective."""
    accumulate = StepRunner.accumulate
    count = 0

    def broken(self: StepRunner, micros: Any, sequences: int, number: int, *, observe: bool) -> Any:
        nonlocal count
        count += 1
        gradients = accumulate(self, micros, sequences, number, observe=observe)
        value = act(self.spec) if count > steps else None
        return gradients if value is None else dataclasses.replace(gradients, objective=value)

    monkeypatch.setattr(StepRunner, "accumulate", broken)


def exhaust(monkeypatch: pytest.MonkeyPatch, steps: int, breaks: Breaks, error: type[BaseException]) -> None:
    """Run out of memory in each forward pass after so many, where the spec asks for too much."""
    forward, count = StepRunner._forward_backward, 0

    def scarce(self: StepRunner, *given: Any) -> Any:
        nonlocal count
        count += 1
        if count > steps and breaks(self.spec):
            raise error("out of memory")
        return forward(self, *given)

    monkeypatch.setattr(StepRunner, "_forward_backward", scarce)


def done(out: Path, step: str) -> bool:
    return read_state(out)[step].status == "done" and store.latest(out / step / "checkpoints") is not None


MEMORY: tuple[tuple[dict[str, Any], Breaks], ...] = (
    ({"batch": EpochBatch(size=2, micro_batch_size=1)}, lambda spec: bool(spec.batch.micro_batch_size > 1)),
    ({"activation_checkpointing": True}, lambda spec: not spec.activation_checkpointing),
    ({"loss_chunk_tokens": 64}, lambda spec: bool(spec.loss_chunk_tokens > 64)),
)


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
@pytest.mark.parametrize(("remedy", "breaks"), MEMORY, ids=[next(iter(remedy)) for remedy, _ in MEMORY])
def test_memory_that_ran_out_is_saved(
    bench: Any,
    sft: Callable[..., SftStep],
    monkeypatch: pytest.MonkeyPatch,
    remedy: dict[str, Any],
    breaks: Breaks,
    error: type[BaseException],
) -> None:
    exhaust(monkeypatch, 7, breaks, error)
    with pytest.raises(
        ResourceError, match=r"lower batch\.micro_batch_size or loss_chunk_tokens, or set activation_checkpointing"
    ):
        bench.run("out", sft())
    bench.run("out", sft(**remedy), resume=True)
    assert done(bench.base / "out", "sft")
    (change,) = read_changes(bench.base / "out" / "sft" / "metrics.jsonl")
    assert change["field"].startswith(next(iter(remedy)))
    assert change["step"] == 5


def test_memory_that_ran_out_in_a_rollout_is_saved(
    bench: Any, grpo: Callable[..., GrpoStep], monkeypatch: pytest.MonkeyPatch
) -> None:
    exhaust(monkeypatch, 3, lambda spec: bool(spec.micro_batch_tokens > 64), MemoryError)
    with pytest.raises(ResourceError, match="lower micro_batch_tokens or loss_chunk_tokens"):
        bench.run("out", grpo(), resume=False)
    bench.run("out", grpo(micro_batch_tokens=64), resume=True)
    assert done(bench.base / "out", "grpo")
    assert read_changes(bench.base / "out" / "grpo" / "metrics.jsonl")[0]["field"] == "micro_batch_tokens"


def test_a_compiler_that_fails_is_left_out(
    bench: Any, sft: Callable[..., SftStep], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)
    monkeypatch.setattr("fathom.train.step._is_compiler_failure", lambda error: True)
    exhaust(monkeypatch, 7, lambda spec: bool(spec.compile), RuntimeError)
    with monkeypatch.context() as patch:
        patch.setattr("fathom.train.step._is_out_of_memory", lambda error: False)
        with pytest.raises(TrainError, match="set compile = false"):
            bench.run("out", sft(compile=True))
    bench.run("out", sft(compile=False), resume=True)
    assert done(bench.base / "out", "sft")


@pytest.mark.parametrize(
    ("remedy", "breaks"),
    [
        ({"optimizer": AdamWSpec(lr=1e-3, weight_decay=0.0)}, lambda spec: bool(spec.optimizer.lr > 1e-3)),
        ({"schedule": Constant(warmup_steps=30)}, lambda spec: bool((spec.schedule.warmup_steps or 0) < 30)),
    ],
    ids=["lr", "warmup"],
)
def test_a_loss_that_is_not_finite_is_met_by_smaller_steps(
    bench: Any,
    sft: Callable[..., SftStep],
    monkeypatch: pytest.MonkeyPatch,
    remedy: dict[str, Any],
    breaks: Breaks,
) -> None:
    break_after(monkeypatch, 7, lambda spec: math.nan if breaks(spec) else None)
    with pytest.raises(TrainError) as caught:
        bench.run("out", sft())
    assert "lower optimizer.lr or raise schedule.warmup_steps" in str(caught.value)
    again = f"fathom train --resume --out {bench.base / 'out'} --allow-changes --set=sft.train.optimizer.lr=0.002"
    assert again in str(caught.value)
    with pytest.raises(SpecError, match="--allow-changes"):
        bench.run("out", sft(**remedy), resume=True)
    bench.run("out", sft(**remedy), resume=True, allow_changes=True)
    assert done(bench.base / "out", "sft")


def test_a_policy_whose_loss_is_not_finite_learns_more_slowly(
    bench: Any, grpo: Callable[..., GrpoStep], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_after(monkeypatch, 2, lambda spec: math.nan if spec.optimizer.lr > 1e-3 else None)
    with pytest.raises(TrainError, match=r"lower optimizer\.lr"):
        bench.run("out", grpo())
    slower = grpo(optimizer=AdamWSpec(lr=1e-3, weight_decay=0.0))
    bench.run("out", slower, resume=True, allow_changes=True)
    assert done(bench.base / "out", "grpo")


def test_the_bound_on_log_probabilities_is_raised(bench: Any, grpo: Callable[..., GrpoStep]) -> None:
    with pytest.raises(TrainError, match="max_logprob_difference"):
        bench.run("out", grpo(max_logprob_difference=1e-12))
    bench.run("out", grpo(), resume=True)
    with pytest.raises(TrainError, match="max_logprob_difference"):
        bench.run("out", grpo(rollouts=6, max_logprob_difference=1e-12), resume=True)
    bench.run("out", grpo(rollouts=6, precision="float32"), resume=True)
    assert done(bench.base / "out", "grpo")
    fields = {each["field"] for each in read_changes(bench.base / "out" / "grpo" / "metrics.jsonl")}
    assert fields == {"rollouts", "precision"}


def test_a_reward_that_cannot_be_used_is_left_out(
    bench: Any, grpo: Callable[..., GrpoStep], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fathom.posttrain.rewards.judge import Judge

    judge, count = Judge.judge, 0

    def broken(self: Judge, answers: Any) -> Any:
        nonlocal count
        count += 1
        if count > 2 and len(self._rewards) > 1:
            raise ResourceError("format: its process cannot be used; repair the reward or leave it out")
        return judge(self, answers)

    monkeypatch.setattr(Judge, "judge", broken)
    with pytest.raises(ResourceError, match="leave it out"):
        bench.run("out", grpo())
    with pytest.raises(SpecError, match=r"steps\.grpo\.rewards\[1\].*--allow-changes"):
        bench.run("out", grpo(REWARDS[:1]), resume=True)
    bench.run("out", grpo(REWARDS[:1]), resume=True, allow_changes=True)
    assert done(bench.base / "out", "grpo")


def test_more_is_learned_where_frozen_is_shortened(bench: Any, sft: Callable[..., SftStep]) -> None:
    with pytest.raises(Interrupted):
        bench.run("out", sft(frozen=("layers.0", "layers.1")), stop_at=6)
    bench.run("out", sft(frozen=("layers.0",)), resume=True, allow_changes=True)
    first, last = (store.Checkpoint.open(path) for path in store.list_checkpoints(bench.base / "out/sft/checkpoints"))
    assert any(name.startswith("layers.1.") for name in last.tensors("optimizer"))
    assert not any(name.startswith("layers.0.") for name in last.tensors("optimizer"))
    assert first.directory < last.directory


@pytest.mark.parametrize("way", range(3), ids=["size", "epochs", "conversations"])
def test_too_little_to_fill_a_batch(bench: Any, sft: Callable[..., SftStep], way: int) -> None:
    short = sft(batch=EpochBatch(size=4, micro_batch_size=1), epochs=1.0)
    with pytest.raises(SpecError, match="do not fill one batch") as caught:
        bench.run("out", short)
    ways = str(caught.value).partition("; add data, or use ")[2].split(", or ")
    assert len(ways) == 3
    overrides = [option for option in shlex.split(ways[way]) if option != "--set"]
    raw = {"name": "bench", "steps": [to_mapping(OpenStep(model="unused")), to_mapping(short)]}
    bench.run("out", make_recipe(raw, overrides).steps[1], resume=True)
    assert done(bench.base / "out", "sft")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_refused_is_used_again(
    bench: Any, sft: Callable[..., SftStep], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(store.CheckpointWriter, "document", refuse)
        with pytest.raises(ResourceError):
            bench.run("out", sft())
    bench.run("out", sft(), resume=True)
    assert done(bench.base / "out", "sft")


def test_a_reward_that_raises_at_every_answer_stops_the_run_until_it_is_corrected(
    bench: Any, grpo: Callable[..., GrpoStep]
) -> None:
    mine = bench.base / "always_raises.py"
    mine.write_text("def chars(prompt, answer, reference):\n    return len(anwser)\n")
    step = grpo((FunctionReward(target="always_raises:chars"),), rollouts=2)
    with pytest.raises(RewardError) as caught:
        bench.run("out", step)
    message = str(caught.value)
    assert "failed at all 4 answers" in message
    assert "NameError: name 'anwser' is not defined" in message
    assert "(always_raises.py, line 2)" in message
    assert read_state(bench.base / "out")["grpo"].status == "failed"
    alone = message.partition("to try it alone: ")[2].replace("python", sys.executable, 1)
    tried = subprocess.run(alone, shell=True, capture_output=True, text=True, check=False)
    assert "NameError" in tried.stderr
    mine.write_text(
        "def chars(prompt, answer, reference):\n    return float('x') if len(answer) % 3 else len(answer)\n"
    )
    bench.run("out", step, resume=True)
    assert done(bench.base / "out", "grpo")
