"""The router study: equal active parameters, the ordinary trainer, and what a run leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fathom.errors import DataError
from fathom.model.build import build
from fathom.model.moe import Router
from fathom.plan import count_parameters
from fathom.spec import ModelSpec
from fathom.spec.train import AdamWSpec, BatchSpec, TrainSpec
from fathom.study.routers import PUBLISHED_LOSS, run
from fathom.study.routers_data import RandomWindows, even_windows, standard_library
from fathom.study.routers_train import (
    QUICK,
    BFloat16Router,
    StudyConfig,
    held_out_loss,
    round_routers,
    train,
    variants,
)
from fathom.train.optimizer import make_optimizer
from fathom.train.step import StepRunner
from tests.recording_progress import RecordingProgress
from tests.train.accumulate import take

LISTED = {variant.name: variant for variant in variants(QUICK)}


def test_all_variants_have_equal_active_parameters_but_for_the_router() -> None:
    counts = {name: count_parameters(variant.spec).active for name, variant in LISTED.items()}
    dense = counts["dense"]
    for name, variant in LISTED.items():
        moe = variant.spec.moe
        router = 0 if moe is None or name == "hash" else moe.n_routed_experts * variant.spec.hidden_size
        assert counts[name] == dense + router
    totals = {count_parameters(v.spec).total - counts[n] for n, v in LISTED.items() if n != "dense"}
    assert len(totals) == 1


def test_text_is_split_by_whole_files_and_repeatable() -> None:
    text = standard_library(60_000)
    assert 60_000 <= text.train_N.numel() + text.held_out_N.numel() < 400_000
    assert int(text.train_N.max()) < 256
    assert b"def " in bytes(text.train_N.tolist())
    one, two = RandomWindows(text.train_N, 16, 3), RandomWindows(text.train_N, 16, 3)
    one.next(4)
    two.restore(one.state())
    batch = one.next(4)
    assert torch.equal(batch.tokens_BT1, two.next(4).tokens_BT1)
    assert batch.tokens_BT1.shape == (4, 17)
    windows = even_windows(text.held_out_N, 16, 5)
    assert torch.equal(windows[0], text.held_out_N[:17])
    assert torch.equal(windows[-1], text.held_out_N[-17:])
    with pytest.raises(DataError, match="no window"):
        RandomWindows(text.train_N[:10], 16, 0)


@pytest.mark.parametrize("name", list(LISTED))
def test_every_variant_trains_with_the_ordinary_trainer(name: str) -> None:
    ticks: list[int] = []
    outcome = train(LISTED[name], QUICK, standard_library(QUICK.text_bytes), seed=0, tick=lambda: ticks.append(1))
    assert len(ticks) == QUICK.steps
    assert 3 < outcome.held_out < 6
    assert (outcome.load_entropy is None) == (name == "dense")
    if "capacity 1" in name:
        assert outcome.dropped is not None
        assert outcome.dropped > 0
    assert (outcome.dropped or 0) == 0 or "switch" in name or name == "gshard"


@pytest.mark.parametrize("name", ["gshard", "switch, capacity 1.25"])
def test_what_is_drawn_does_not_depend_on_the_micro_batch(name: str) -> None:
    gradients = []
    for micro in (1, 4):
        spec: ModelSpec = LISTED[name].spec
        model = build(spec).train()
        train_spec = TrainSpec(
            sequence_length=16,
            total_tokens=64,
            batch=BatchSpec(size=4, micro_batch_size=micro),
            optimizer=AdamWSpec(lr=0.1),
        )
        assert spec.moe is not None
        model.spec = replace(
            spec, moe=replace(spec.moe, router=replace(spec.moe.router, balance=type(spec.moe.router.balance)()))
        )
        runner = StepRunner(model, make_optimizer(model, train_spec.optimizer), train_spec, sources=0)
        batch = RandomWindows(standard_library(60_000).train_N, 16, 0).next(4)
        take(runner, batch, 7, observe=False)
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_rounded_routers_keep_their_weights_and_lose_bits() -> None:
    spec = LISTED["switch, bfloat16 router"].spec
    model, plain = build(spec).eval(), build(spec).eval()
    round_routers(model)
    routers = [module for module in model.modules() if isinstance(module, Router)]
    assert all(isinstance(router, BFloat16Router) for router in routers)
    x = torch.randn(1, 5, spec.hidden_size, generator=torch.Generator().manual_seed(0))
    gate = next(module for module in plain.modules() if isinstance(module, Router))
    assert gate.weight is not None
    assert torch.equal(routers[0].weight, gate.weight)
    logits, exact = routers[0].project(x, gate.weight), gate.project(x, gate.weight)
    assert torch.equal(logits, logits.bfloat16().float())
    assert not torch.equal(logits, exact)
    torch.testing.assert_close(logits, exact, rtol=0.05, atol=1e-3)


def test_held_out_loss_is_the_mean_over_all_windows() -> None:
    model = build(LISTED["dense"].spec)
    windows = even_windows(standard_library(60_000).held_out_N, 16, 5)
    with torch.no_grad():
        logits = model.eval().logits(model(windows[:, :-1]).hidden_BTD)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()
    assert held_out_loss(model, windows, 2) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_quick_run_leaves_its_files_with_published_figures_apart(tmp_path: Path) -> None:
    progress = RecordingProgress()
    result = run(tmp_path, seed=0, quick=True, progress=progress)
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "table.md", "picture.png"}
    assert [update.done for update in progress.updates] == list(range(1, len(LISTED) * QUICK.steps * QUICK.repeats + 1))
    assert set(result["outcomes"]) == set(LISTED)
    measured, published = (tmp_path / "table.md").read_text().split("## Published")
    assert all(f"{loss:.3f}" in published for loss in PUBLISHED_LOSS.values())
    assert all(name in measured for name in LISTED)
    assert StudyConfig().repeats > 1
