"""Resuming a stage with other settings: what may differ, what is recorded, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fathom.checkpoint import store
from fathom.checkpoint.writer import MANIFEST
from fathom.errors import CheckpointError
from fathom.spec import ModelSpec
from fathom.spec.train import AdamWSpec, BatchSpec, Checkpointing, Constant, MuonSpec, TrainSpec
from fathom.train import Trainer
from fathom.train.metrics import read_changes, read_json_lines
from tests.recording_progress import RecordingProgress, Update

MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def half(tmp_path: Path, make_trainer: MakeTrainer, train_spec: TrainSpec) -> Path:
    """A stage of half as many tokens, at its end."""
    make_trainer(tmp_path, train=replace(train_spec, total_tokens=train_spec.total_tokens // 2)).run()
    return tmp_path


def test_rounding_may_differ_and_is_recorded(half: Path, make_trainer: MakeTrainer, train_spec: TrainSpec) -> None:
    progress = RecordingProgress()
    changed = replace(
        train_spec,
        batch=BatchSpec(size=4, micro_batch_size=1),
        activation_checkpointing=True,
        loss_chunk_tokens=8,
        precision="bfloat16",
    )
    assert make_trainer(half, train=changed, progress=progress).run(resume=True).steps == 12
    found = {each.pop("field"): each for each in read_changes(half / "metrics.jsonl")}
    assert found == {
        "total_tokens": {"step": 6, "old": 384, "new": 768},
        "batch.micro_batch_size": {"step": 6, "old": 2, "new": 1},
        "loss_chunk_tokens": {"step": 6, "old": 1024, "new": 8},
        "activation_checkpointing": {"step": 6, "old": False, "new": True},
        "precision": {"step": 6, "old": "auto", "new": "bfloat16"},
    }
    assert "resumes after step 6 with" in progress.messages[0]
    assert "batch.micro_batch_size 1 instead of 2" in progress.messages[0]
    assert [line["step"] for line in read_json_lines(half / "metrics.jsonl")] == [1, 2, 4, 6, 8, 10, 12]
    assert make_trainer(half, train=changed).run(resume=True).steps == 12
    assert len(read_changes(half / "metrics.jsonl")) == 5


def test_moments_change_their_dtype_and_muon_stays_bit_for_bit(
    half: Path, tmp_path_factory: pytest.TempPathFactory, make_trainer: MakeTrainer, train_spec: TrainSpec
) -> None:
    narrow = replace(train_spec, optimizer=AdamWSpec(lr=0.01, state_dtype="bfloat16"))
    assert make_trainer(half, train=narrow).run(resume=True).steps == 12
    assert {each["field"] for each in read_changes(half / "metrics.jsonl")} == {"total_tokens", "optimizer.state_dtype"}
    muon = replace(train_spec, optimizer=AdamWSpec(lr=0.01, state_dtype="bfloat16", muon=MuonSpec()))
    with pytest.raises(CheckpointError, match=r"train\.optimizer\.muon\.momentum was None and is 0\.95"):
        make_trainer(half, train=muon).run(resume=True, allow_changes=True)
    whole, parts = (tmp_path_factory.mktemp(name) for name in ("whole", "parts"))
    make_trainer(whole, train=muon).run()
    make_trainer(parts, train=replace(muon, total_tokens=train_spec.total_tokens // 2)).run()
    make_trainer(parts, train=muon).run(resume=True)
    last = (store.latest(each / store.CHECKPOINTS) for each in (whole, parts))
    one, two = (store.Checkpoint.open(path).tensors("model") for path in last if path is not None)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_changes_learning_needs_leave(half: Path, make_trainer: MakeTrainer, train_spec: TrainSpec) -> None:
    changed = replace(train_spec, optimizer=AdamWSpec(lr=0.002), schedule=Constant(warmup_steps=9))
    with pytest.raises(CheckpointError) as caught:
        make_trainer(half, train=changed).run(resume=True)
    assert "train.optimizer.lr was 0.01 and is 0.002" in str(caught.value)
    assert "train.schedule.warmup_steps was 3 and is 9" in str(caught.value)
    assert "allow_changes=True" in str(caught.value)
    make_trainer(half, train=changed).run(resume=True, allow_changes=True)
    rates = {line["step"]: line["lr"] for line in read_json_lines(half / "metrics.jsonl")}
    assert rates[6] == 0.01
    assert rates[8] == pytest.approx(0.002 * 8 / 9)
    assert {each["field"] for each in read_changes(half / "metrics.jsonl")} == {
        "optimizer.lr",
        "schedule.warmup_steps",
        "total_tokens",
    }


def test_fewer_tokens_need_leave_and_end_at_once(half: Path, make_trainer: MakeTrainer, train_spec: TrainSpec) -> None:
    fewer = replace(train_spec, total_tokens=128)
    with pytest.raises(CheckpointError, match=r"train\.total_tokens was 384 and is 128; .* allow changes"):
        make_trainer(half, train=fewer).run(resume=True)
    assert make_trainer(half, train=fewer).run(resume=True, allow_changes=True).steps == 6


def test_data_and_model_stay_as_they_were(
    half: Path, make_trainer: MakeTrainer, train_spec: TrainSpec, model_spec: ModelSpec
) -> None:
    with pytest.raises(CheckpointError, match=r"train\.seed was 1 and is 2; .* start in a new directory"):
        make_trainer(half, train=replace(train_spec, seed=2)).run(resume=True, allow_changes=True)
    with pytest.raises(CheckpointError, match=r"model\.rms_norm_eps was 1e-06 and is 1e-05"):
        make_trainer(half, model=replace(model_spec, rms_norm_eps=1e-5)).run(resume=True, allow_changes=True)
    with pytest.raises(CheckpointError, match="holds checkpoints already; resume"):
        make_trainer(half).run()


def test_cadences_differ_unrecorded(half: Path, make_trainer: MakeTrainer, train_spec: TrainSpec) -> None:
    cadence = replace(train_spec, checkpoint=Checkpointing(keep=9), log_every_steps=1, evaluate_every_steps=3)
    make_trainer(half, train=cadence).run(resume=True)
    assert [each["field"] for each in read_changes(half / "metrics.jsonl")] == ["total_tokens"]


def test_a_resume_from_the_same_checkpoint_records_its_own_changes_only(
    half: Path, make_trainer: MakeTrainer, train_spec: TrainSpec
) -> None:
    class Stopped(Exception):
        pass

    def stop(update: Update) -> None:
        raise Stopped

    tried = replace(train_spec, loss_chunk_tokens=8)
    with pytest.raises(Stopped):
        make_trainer(half, train=tried, progress=RecordingProgress(stop)).run(resume=True)
    assert {each["field"] for each in read_changes(half / "metrics.jsonl")} == {"total_tokens", "loss_chunk_tokens"}
    make_trainer(half).run(resume=True)
    assert {each["field"] for each in read_changes(half / "metrics.jsonl")} == {"total_tokens"}


def test_a_checkpoint_with_former_field_names_is_resumed(half: Path, make_trainer: MakeTrainer) -> None:
    checkpoint = store.latest(half / "checkpoints")
    assert checkpoint is not None
    opened = store.Checkpoint.open(checkpoint)
    spec = opened.document("spec")
    spec["train"]["batch"]["micro_size"] = spec["train"]["batch"].pop("micro_batch_size")
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    documents = {"spec": spec, "state": opened.document("state")}
    store.save(checkpoint, tensors={stem: opened.tensors(stem) for stem in ("model", "optimizer")}, documents=documents)
    assert json.loads((checkpoint / MANIFEST).read_text()) != manifest
    assert make_trainer(half).run(resume=True).steps == 12
    assert [each["field"] for each in read_changes(half / "metrics.jsonl")] == ["total_tokens"]
