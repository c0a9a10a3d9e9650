"""Frozen parts keep their bits; image batches teach the towers what text batches leave alone."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fathom.errors import SpecError, TrainError
from fathom.model.build import build
from fathom.model.vision import ImageBatch
from fathom.spec import GroupedQueryAttention, ModelSpec
from fathom.spec.train import AdamWSpec, BatchSpec, Checkpointing, Constant, TrainSpec
from fathom.spec.vision import SiglipSpec, VisionSpec
from fathom.train import Trainer
from fathom.train.freeze import freeze
from fathom.train.step import StepRunner
from tests.train.accumulate import take

IMAGE, PER_IMAGE = 7, 4
SPEC = ModelSpec(
    name="tiny-vl",
    family="deepseek_vl",
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    attention=GroupedQueryAttention(num_heads=2, num_kv_heads=2, head_dim=8),
    max_position_embeddings=16,
    intermediate_size=24,
    vision=VisionSpec(
        low=SiglipSpec(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
        ),
        image_token_id=IMAGE,
        connector="mlp",
    ),
)
TRAIN = TrainSpec(
    sequence_length=10,
    total_tokens=4 * 4 * 10,
    batch=BatchSpec(size=4, micro_batch_size=2),
    optimizer=AdamWSpec(lr=0.01),
    schedule=Constant(),
    checkpoint=Checkpointing(every_steps=2, every_seconds=None),
)


@dataclass(frozen=True)
class SeeingBatch:
    tokens_BT1: Tensor
    source_B: Tensor
    images: ImageBatch | None
    targets_BT: Tensor | None
    ends_BT: Tensor | None = None


class Pictures:
    """Batches of one image each, drawn from their number."""

    def __init__(self, *, seeing: bool = True) -> None:
        self.seeing, self.number = seeing, 0

    def next(self, batch_size: int) -> SeeingBatch:
        generator = torch.Generator().manual_seed(self.number)
        self.number += 1
        tokens = torch.randint(8, 40, (batch_size, 11), generator=generator)
        if not self.seeing:
            return SeeingBatch(tokens, torch.zeros(batch_size, dtype=torch.int64), None, None)
        tokens[:, 1 : 1 + PER_IMAGE] = IMAGE
        targets = tokens[:, 1:].clone()
        targets[:, :PER_IMAGE] = -100
        images = ImageBatch(torch.randn(batch_size, 3, 8, 8, generator=generator))
        return SeeingBatch(tokens, torch.zeros(batch_size, dtype=torch.int64), images, targets)

    def state(self) -> dict[str, Any]:
        return {"number": self.number}

    def restore(self, state: dict[str, Any]) -> None:
        self.number = state["number"]


def trained(frozen: tuple[str, ...], directory: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model = build(SPEC, seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Trainer(model, replace(TRAIN, frozen=frozen), Pictures(), directory).run()
    return before, model.state_dict()


@pytest.mark.parametrize("frozen", [(), ("vision.low",), ("embed_tokens", "layers", "norm", "lm_head", "vision.low")])
def test_what_is_frozen_keeps_its_bits_and_the_rest_learns(frozen: tuple[str, ...], tmp_path: Path) -> None:
    before, after = trained(frozen, tmp_path)
    for name, value in after.items():
        still = any(name == part or name.startswith(part + ".") for part in frozen)
        assert torch.equal(value, before[name]) == still, name


def test_a_frozen_stage_resumes_to_the_same_bits(tmp_path: Path) -> None:
    frozen = replace(TRAIN, frozen=("vision.low",))
    whole, again = build(SPEC, seed=1), build(SPEC, seed=1)
    last = Trainer(whole, frozen, Pictures(), tmp_path).run().checkpoint
    shutil.rmtree(last)
    Trainer(again, frozen, Pictures(), tmp_path).run(resume=True)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000002", last.name]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_the_loss_counts_only_what_is_learned() -> None:
    model = build(SPEC, seed=2).train()
    batch = Pictures().next(2)
    runner = StepRunner(
        model,
        torch.optim.AdamW(model.parameters()),
        replace(TRAIN, batch=BatchSpec(size=2, micro_batch_size=2)),
        sources=1,
    )
    found = take(runner, batch, 1, observe=True)
    assert model.vision is not None
    assert batch.images is not None
    assert batch.targets_BT is not None
    features = model.vision(batch.images).flatten(0, 1)
    logits = model.logits(model(batch.tokens_BT1[:, :-1], features_ND=features).hidden_BTD)
    kept = batch.targets_BT != -100
    expected = -logits.log_softmax(-1)[kept].gather(-1, batch.targets_BT[kept][:, None]).mean()
    assert found.objective == pytest.approx(expected.item(), rel=1e-5)
    assert found.observation is not None
    assert found.observation.tokens_X == [int(kept.sum())]


def test_names_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = build(SPEC)
    with pytest.raises(SpecError, match=r"frozen\[1\]: the model has no 'tower'"):
        freeze(model, ["layers.0", "tower"])
    with pytest.raises(SpecError, match="the model has no 'layer'"):
        freeze(model, ["layer"])
    with pytest.raises(SpecError, match="leave something to learn"):
        freeze(model, ["embed_tokens", "layers", "norm", "lm_head", "vision"])
    freeze(model, [])
    assert all(parameter.requires_grad for parameter in model.parameters())
    frozen = replace(TRAIN, frozen=("embed_tokens", "layers", "norm", "lm_head"))
    with pytest.raises(TrainError, match="no trainable parameter takes part in this batch; shorten frozen"):
        Trainer(model, frozen, Pictures(seeing=False), tmp_path).run()
