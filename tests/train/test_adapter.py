"""Training an adapter: what changes, what is saved, and how it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fathom.checkpoint import store
from fathom.checkpoint.adapter_checkpoint import AdapterCheckpoint
from fathom.errors import CheckpointError, SpecError
from fathom.model.adapters.attach import learned_state
from fathom.spec.adapter import LoraSpec
from fathom.spec.train import TrainSpec
from fathom.train import Trainer
from tests.recording_progress import RecordingProgress

MakeTrainer = Callable[..., Trainer]
LORA = LoraSpec(rank=2, alpha=8.0, dropout=0.2)


def test_only_the_adapter_changes_and_is_saved_and_a_cut_stage_ends_as_a_whole_one(
    tmp_path: Path, make_trainer: MakeTrainer, train_spec: TrainSpec
) -> None:
    train, progress = replace(train_spec, adapter=LORA), RecordingProgress()
    whole = make_trainer(tmp_path / "whole", train=train, progress=progress)
    before = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    summary = whole.run()
    learned = learned_state(whole.model)
    after = whole.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - learned.keys())
    assert any("e_score_correction_bias" in name for name in before)
    assert all(not torch.equal(after[name], before[name]) for name in learned)
    saved = store.Checkpoint.open(summary.checkpoint)
    assert saved.tensors("adapter").keys() == learned.keys()
    assert {name.rpartition("/")[0] for name in saved.tensors("optimizer")} == learned.keys()
    assert "model.safetensors" not in saved.manifest["files"]
    assert progress.messages[0].startswith("LoRA of rank 2 on 14 layers: 2,144 parameters are trained, 14.57% of")
    assert progress.messages[1].startswith("not adapted: embed_tokens (modules_to_save trains it whole), lm_head")

    half = replace(train, total_tokens=train.total_tokens // 2)
    make_trainer(tmp_path / "cut", train=half).run()
    resumed = make_trainer(tmp_path / "cut", train=replace(train, activation_checkpointing=True))
    resumed.run(resume=True)
    found = learned_state(resumed.model)
    assert all(torch.equal(found[name], learned[name]) for name in learned)
    opened = AdapterCheckpoint.open(summary.checkpoint)
    assert opened.lora == LORA
    assert opened.base is None


def test_another_adapter_is_no_resume(tmp_path: Path, make_trainer: MakeTrainer, train_spec: TrainSpec) -> None:
    make_trainer(tmp_path, train=replace(train_spec, adapter=LORA, total_tokens=64)).run()
    with pytest.raises(CheckpointError, match=r"train\.adapter\.rank was 2 and is 3"):
        make_trainer(tmp_path, train=replace(train_spec, adapter=replace(LORA, rank=3))).run(resume=True)
    with pytest.raises(CheckpointError, match="cannot resume"):
        make_trainer(tmp_path, train=train_spec).run(resume=True)


def test_frozen_goes_with_no_adapter(train_spec: TrainSpec) -> None:
    with pytest.raises(SpecError, match="goes with no adapter"):
        replace(train_spec, adapter=LORA, frozen=("layers.0",))
