"""The trainer end to end on a tiny decoder: it learns, it stops in order, and it resumes bit for bit."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fathom.checkpoint import store
from fathom.checkpoint.names import joined_shape
from fathom.errors import CheckpointError, DataError, Interrupted, ResourceError, SpecError, TrainError
from fathom.progress import NO_METRICS, NullProgress
from fathom.signals import StopRequest
from fathom.spec import ModelSpec
from fathom.spec.train import BatchSpec, TrainSpec
from fathom.train import Trainer
from fathom.train.metrics import read_json_lines
from tests.recording_progress import RecordingProgress
from tests.slow_cases import fast

MakeTrainer = Callable[..., Trainer]
TIMED = ("seconds", "tokens_per_second", "mfu", "peak_memory_bytes")


def lines(directory: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMED} for line in read_json_lines(directory / name)]


def assert_same_checkpoint(one: Path, two: Path) -> None:
    first, second = store.Checkpoint.open(one), store.Checkpoint.open(two)
    for stem in ("model", "optimizer"):
        left, right = first.tensors(stem), second.tensors(stem)
        assert left.keys() == right.keys()
        assert left
        for name in left:
            assert left[name].dtype == right[name].dtype
            assert torch.equal(left[name], right[name]), name
    states = [opened.document("state") for opened in (first, second)]
    for state in states:
        assert state.pop("seconds") > 0
    assert states[0] == states[1]
    assert first.document("spec") == second.document("spec")


class StopAfter(NullProgress):
    """Asks the trainer to stop as a user would: a signal to its own process, from within step N."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    def update(self, *counts: object, metrics: Mapping[str, str] = NO_METRICS, **options: object) -> None:
        if metrics["step"].startswith(f"{self.step}/"):
            os.kill(os.getpid(), self.number)
            os.kill(os.getpid(), self.number)

    def message(self, text: str) -> None:
        raise AssertionError(text)


def test_a_stage_learns_and_leaves_metrics_and_checkpoints(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    progress = RecordingProgress()
    summary = make_trainer(tmp_path, progress=progress).run()
    assert (summary.steps, summary.tokens) == (12, 768)
    assert summary.checkpoint == tmp_path / "checkpoints" / "step-00000012"
    assert [p.name for p in store.list_checkpoints(tmp_path / "checkpoints")] == ["step-00000010", "step-00000012"]
    written = read_json_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in written] == [1, 2, 4, 6, 8, 10, 12]
    first, last = written[0], written[-1]
    assert last["loss"] < first["loss"] - 0.1
    assert last["loss"] == summary.loss
    assert last["loss"] == pytest.approx(last["lm_loss"] + last["balance_loss"] + last["mtp_loss"])
    assert last["lr"] == 0.01
    assert first["lr"] == pytest.approx(0.01 / 3)
    assert last["tokens"] == 768
    assert 0 < last["mtp_loss"] < last["lm_loss"]
    assert 0 < last["load_entropy_min"] <= last["load_entropy"] <= 1
    assert last["load_max_over_mean"] >= 1
    assert 0 < last["dropped_fraction"] < 1
    assert last["mfu"] > 0
    assert last["peak_memory_bytes"] > 1e6
    assert set(last["bits_per_byte_by_source"]) <= {"stories", "code"}
    shares = read_json_lines(tmp_path / "experts.jsonl")[-1]["layers"]
    assert list(shares) == ["layers.1", "mtp.0.block"]
    assert all(sum(row) == pytest.approx(1, abs=1e-3) and len(row) == 8 for row in shares.values())
    assert [update.step for update in progress.updates] == list(range(1, 13))
    assert [update.done for update in progress.updates] == list(range(64, 769, 64))
    end = progress.updates[-1]
    assert (end.done, end.total, end.unit) == (768, 768, "tokens")
    assert (end.metrics["step"], end.metrics["loss"]) == ("12/12", f"{summary.loss:.3f}")
    assert end.metrics.keys() == {"step", "loss", "tokens/s"}


def test_a_resumed_stage_equals_one_that_never_stopped(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    make_trainer(tmp_path / "straight").run()
    broken = tmp_path / "broken"
    with pytest.raises(Interrupted, match=r"SIGTERM after step 7: the state is saved in .*step-00000007"):
        make_trainer(broken, progress=StopAfter(7)).run()
    with pytest.raises(Interrupted, match="SIGINT after step 8"):
        make_trainer(broken, progress=StopAfter(8, signal.SIGINT)).run(resume=True)
    torch.manual_seed(99)
    summary = make_trainer(broken).run(resume=True)
    assert summary.steps == 12
    name = "checkpoints/step-00000012"
    assert_same_checkpoint(tmp_path / "straight" / name, broken / name)
    assert lines(tmp_path / "straight") == lines(broken)
    assert lines(tmp_path / "straight", "experts.jsonl") == lines(broken, "experts.jsonl")
    again = make_trainer(broken).run(resume=True)
    assert (again.steps, again.loss, again.checkpoint) == (12, summary.loss, summary.checkpoint)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_run_whose_checkpoint_holds_gate_and_up_joined_resumes_bit_for_bit(
    tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    """Checkpoints of format version 1, weights and optimizer state alike."""
    make_trainer(tmp_path / "straight").run()
    broken = tmp_path / "broken"
    with pytest.raises(Interrupted):
        make_trainer(broken, progress=StopAfter(7)).run()
    saved = store.Checkpoint.open(broken / "checkpoints" / "step-00000007")
    stems = {
        stem: {n: t.reshape(joined_shape(n.partition("/")[0], tuple(t.shape))) for n, t in saved.tensors(stem).items()}
        for stem in ("model", "optimizer")
    }
    assert stems["optimizer"]["layers.1.mlp.experts.gate_up_proj/exp_avg"].shape == (8, 16, 16)
    documents = {stem: saved.document(stem) for stem in ("spec", "state")}
    store.save(saved.directory, tensors=stems, documents=documents)
    make_trainer(broken).run(resume=True)
    name = "checkpoints/step-00000012"
    assert_same_checkpoint(tmp_path / "straight" / name, broken / name)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(
    tmp_path: Path, make_trainer: MakeTrainer, model_spec: ModelSpec
) -> None:
    tied = replace(model_spec, tie_word_embeddings=True)
    make_trainer(tmp_path / "straight", model=tied).run()
    broken = tmp_path / "broken"
    make_trainer(broken, model=tied).run()
    last = broken / "checkpoints" / "step-00000012"
    whole = (last / "optimizer.safetensors").read_bytes()
    (last / "optimizer.safetensors").write_bytes(whole[:-8])
    with pytest.raises(
        CheckpointError, match=r"optimizer\.safetensors: has \d+ bytes instead of \d+; .*delete .*12 to"
    ):
        make_trainer(broken, model=tied).run(resume=True)
    shutil.rmtree(last)
    assert make_trainer(broken, model=tied).run(resume=True).checkpoint == last
    assert_same_checkpoint(tmp_path / "straight" / "checkpoints" / last.name, last)
    assert lines(tmp_path / "straight") == lines(broken)


@pytest.mark.parametrize("number", fast([signal.SIGKILL, signal.SIGTERM], [signal.SIGKILL]))
def test_a_process_stopped_from_outside_resumes_bit_for_bit(
    tmp_path: Path, make_trainer: MakeTrainer, number: signal.Signals
) -> None:
    script = """
        import runpy, sys
        from pathlib import Path
        from fathom.errors import Interrupted
        from fathom.progress import NullProgress
        tools = runpy.run_path(sys.argv[1])
        class Waiting(NullProgress):
            def update(self, *counts, metrics, **options):
                if metrics["step"].startswith("7/"):
                    print("seven", flush=True)
                    sys.stdin.readline()
        try:
            tools["new_trainer"](Path(sys.argv[2]), progress=Waiting()).run()
        except Interrupted as stopped:
            print(stopped)
    """
    broken, conftest = tmp_path / "broken", str(Path(__file__).with_name("conftest.py"))
    command = [sys.executable, "-c", textwrap.dedent(script), conftest, str(broken)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "seven\n"
        process.send_signal(number)
        rest, _ = process.communicate("\n" if number == signal.SIGTERM else None)
    kept = 5 if number == signal.SIGKILL else 7
    assert ("SIGTERM after step 7" in rest) == (number == signal.SIGTERM)
    assert store.latest(broken / "checkpoints") == broken / "checkpoints" / f"step-{kept:08d}"
    make_trainer(broken).run(resume=True)
    make_trainer(tmp_path / "straight").run()
    name = "checkpoints/step-00000012"
    assert_same_checkpoint(tmp_path / "straight" / name, broken / name)
    assert lines(tmp_path / "straight") == lines(broken)


def test_a_stage_may_run_outside_the_main_thread(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(make_trainer(tmp_path).run().steps))
    thread.start()
    thread.join()
    assert done == [12]


def test_an_interrupted_stage_leaves_the_same_bytes(
    tmp_path: Path, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    monkeypatch.setattr("fathom.train.loop.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    make_trainer(tmp_path / "straight").run()
    torch.rand(3)
    with pytest.raises(Interrupted):
        make_trainer(tmp_path / "broken", progress=StopAfter(7)).run()
    torch.manual_seed(99)
    make_trainer(tmp_path / "broken").run(resume=True)
    straight, broken = (tmp_path / name / "checkpoints" / "step-00000012" for name in ("straight", "broken"))
    assert sorted(path.name for path in straight.iterdir()) == sorted(path.name for path in broken.iterdir())
    for path in straight.iterdir():
        assert path.read_bytes() == (broken / path.name).read_bytes(), path.name


def test_a_signal_at_the_very_end_is_not_lost(
    tmp_path: Path, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave = StopRequest.__exit__

    def signalled(self: StopRequest, *error: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        leave(self, *error)

    monkeypatch.setattr(StopRequest, "__exit__", signalled)
    with pytest.raises(Interrupted, match="SIGTERM after step 12"):
        make_trainer(tmp_path).run()
    monkeypatch.undo()
    assert make_trainer(tmp_path).run(resume=True).steps == 12


def test_a_loss_that_is_no_number_stops_before_the_step(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(tmp_path, progress=Poison(tmp_path, 7))
    trainer._progress.model = trainer.model  # type: ignore[attr-defined]
    with pytest.raises(TrainError) as caught:
        trainer.run()
    path = tmp_path / "bad_batch-00000008.safetensors"
    message = str(caught.value)
    assert message.startswith("step 8: loss is nan")
    assert str(path) in message
    assert "lower optimizer.lr" in message
    kept = load_file(path)
    assert kept["tokens"].shape == (4, 17)
    described = json.loads(path.with_suffix(".json").read_text())
    assert (described["step"], described["objective"], described["tokens_seen"]) == (8, "nan", 448)
    weights = dict(trainer.model.named_parameters())
    assert all(parameter.grad is None for parameter in weights.values())
    assert sum(int(p.isnan().sum()) for p in weights.values()) == 1
    assert store.latest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-00000005"


class Poison(NullProgress):
    """Puts one NaN into a weight after a step."""

    model: torch.nn.Module

    def __init__(self, directory: Path, step: int) -> None:
        self.directory, self.step = directory, step

    def update(self, *counts: object, metrics: Mapping[str, str] = NO_METRICS, **options: object) -> None:
        if metrics["step"].startswith(f"{self.step}/"):
            with torch.no_grad():
                self.model.get_parameter("layers.0.self_attn.o_proj.weight")[0, 0] = math.nan


def test_evaluation_joins_its_step_and_leaves_training_unchanged(
    tmp_path: Path, make_trainer: MakeTrainer, train_spec: TrainSpec
) -> None:
    modes: list[tuple[bool, bool]] = []

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        modes.append((model.training, torch.is_grad_enabled()))
        return {"held_out": 1.5}

    spec = replace(train_spec, evaluate_every_steps=5)
    summary = make_trainer(tmp_path / "a", train=spec, evaluate=evaluate).run()
    make_trainer(tmp_path / "b", train=spec).run()
    assert modes == [(False, False)] * 2
    found = {line["step"]: line["evaluation"] for line in lines(tmp_path / "a") if "evaluation" in line}
    assert found == {5: {"held_out": 1.5}, 10: {"held_out": 1.5}}
    assert summary.evaluation == {"held_out": 1.5}
    name = "checkpoints/step-00000012"
    assert_same_checkpoint(tmp_path / "a" / name, tmp_path / "b" / name)


def test_an_evaluation_that_raises_leaves_the_model_in_training(
    tmp_path: Path, make_trainer: MakeTrainer, train_spec: TrainSpec
) -> None:
    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        raise ValueError("no text")

    trainer = make_trainer(tmp_path, train=replace(train_spec, evaluate_every_steps=5), evaluate=evaluate)
    with pytest.raises(ValueError, match="no text"):
        trainer.run()
    assert trainer.model.training


def test_a_full_disk_is_noted_between_and_fatal_at_the_end(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    progress = RecordingProgress()
    (tmp_path / "checkpoints").touch()
    with pytest.raises(ResourceError, match="step-00000012: not written, a part of the path is a file"):
        make_trainer(tmp_path, progress=progress).run()
    assert [note.partition(":")[0] for note in progress.messages] == ["step 5", "step 10"]
    assert all("training goes on" in note for note in progress.messages)
    assert lines(tmp_path)[-1]["step"] == 12


def test_a_collapsed_router_raises_an_alarm_once(
    tmp_path: Path, make_trainer: MakeTrainer, model_spec: ModelSpec
) -> None:
    progress = RecordingProgress()
    trainer = make_trainer(tmp_path, progress=progress)
    bias = trainer.model.get_buffer("layers.1.mlp.gate.e_score_correction_bias")
    bias[:2] = 100.0
    trainer.run()
    first, last = progress.messages
    assert "step 4: few experts do all the work in layers.1 (router collapse); lower" in first
    assert last.startswith("at the end: few experts do all the work in layers.1")
    assert all(line["alarms"] == ["collapsed_routing"] for line in lines(tmp_path)[2:])
    assert all(line["collapsed_layers"] == ["layers.1"] for line in lines(tmp_path))
    assert lines(tmp_path)[0]["load_entropy_min"] == pytest.approx(math.log(2) / math.log(8))


def test_the_batch_ramp_is_followed(tmp_path: Path, make_trainer: MakeTrainer, train_spec: TrainSpec) -> None:
    batch = BatchSpec(size=6, micro_batch_size=2, initial_size=2, ramp_tokens=200)
    summary = make_trainer(tmp_path, train=replace(train_spec, batch=batch, log_every_steps=1)).run()
    seen = [0] + [line["tokens"] for line in lines(tmp_path)]
    assert [later - before for before, later in pairwise(seen)] == [batch.at(tokens) * 16 for tokens in seen[:-1]]
    assert summary.tokens >= 768


def test_bad_input_is_refused(
    tmp_path: Path, make_trainer: MakeTrainer, make_loader: Callable[..., Any], train_spec: TrainSpec
) -> None:
    with pytest.raises(SpecError, match="sequence_length: 64 exceeds the model's context of 32"):
        make_trainer(tmp_path, train=replace(train_spec, sequence_length=64))
    with pytest.raises(DataError, match=r"shape \(4, 10\) instead of \(B, 17\)"):
        make_trainer(tmp_path, loader=make_loader(length=9)).run()
    with pytest.raises(DataError, match=r"token \d+ is outside the vocabulary of 64"):
        make_trainer(tmp_path, loader=make_loader(vocabulary=1000)).run()
    half = make_trainer(tmp_path)
    with pytest.raises(SpecError, match=r"model: has weights of torch\.bfloat16"):
        Trainer(half.model.bfloat16(), train_spec, make_loader(), tmp_path)
