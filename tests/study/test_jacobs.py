"""The three errors of Jacobs et al. 1991, their slopes against the paper's formulas, and what training them does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fathom.study import registry
from fathom.study.jacobs.losses import LOSSES, competitive, cooperative, mixture
from fathom.study.jacobs.measures import measure
from fathom.study.jacobs.systems import Backprop, Mixture, descend, set_weights
from fathom.study.jacobs.table import claims
from fathom.study.jacobs.vowels import GROUPS, Cases, draw
from tests.recording_progress import RecordingProgress


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of three experts with two units on five cases, their gates and what is wanted, in double precision."""
    generator = torch.Generator().manual_seed(1)
    outputs, logits, target = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((5, 3, 2), (5, 3), (5, 2))
    )
    return outputs.requires_grad_(), logits.log_softmax(-1).requires_grad_(), target


def written_out(outputs: Tensor, log_gates: Tensor, target: Tensor) -> dict[str, np.ndarray]:
    """The three errors of each case, with numpy and loops."""
    o, p, d = outputs.detach().numpy(), log_gates.detach().exp().numpy(), target.numpy()
    errors: dict[str, list[float]] = {name: [] for name in LOSSES}
    for c in range(len(d)):
        distance = [((d[c] - o[c, i]) ** 2).sum() for i in range(3)]
        errors["cooperative"].append(((d[c] - sum(p[c, i] * o[c, i] for i in range(3))) ** 2).sum())
        errors["competitive"].append(sum(p[c, i] * distance[i] for i in range(3)))
        errors["mixture"].append(-np.log(sum(p[c, i] * np.exp(-distance[i] / 2) for i in range(3))))
    return {name: np.array(values) for name, values in errors.items()}


@pytest.mark.parametrize("name", LOSSES)
def test_errors_are_the_papers_formulas(case: tuple[Tensor, Tensor, Tensor], name: str) -> None:
    assert LOSSES[name](*case).detach().numpy() == pytest.approx(written_out(*case)[name], rel=1e-12)


def test_slopes_at_the_experts_are_the_papers_formulas(case: tuple[Tensor, Tensor, Tensor]) -> None:
    outputs, log_gates, target = case
    p, miss = log_gates.detach().exp(), target.unsqueeze(1) - outputs.detach()
    fit = p * torch.exp(-0.5 * miss.square().sum(-1))
    residual = target - (p.unsqueeze(-1) * outputs.detach()).sum(1)
    expected = {
        cooperative: -2.0 * p.unsqueeze(-1) * residual.unsqueeze(1),
        competitive: -2.0 * p.unsqueeze(-1) * miss,
        mixture: -(fit / fit.sum(-1, keepdim=True)).unsqueeze(-1) * miss,
    }
    for loss, slope in expected.items():
        (found,) = torch.autograd.grad(loss(outputs, log_gates, target).sum(), outputs)
        torch.testing.assert_close(found, slope, rtol=1e-12, atol=1e-14)


def test_with_the_mixture_error_the_best_expert_learns_fastest_and_with_the_competitive_one_slowest() -> None:
    outputs = torch.tensor([[[1.2], [2.0], [3.0]]], requires_grad=True)
    even, target = torch.full((1, 3), 1 / 3).log(), torch.zeros(1, 1)
    speed = {}
    for name in ("mixture", "competitive"):
        (slope,) = torch.autograd.grad(LOSSES[name](outputs, even, target).sum(), outputs)
        speed[name] = slope.flatten().tolist()
    assert speed["mixture"] == sorted(speed["mixture"], reverse=True)
    assert speed["competitive"] == sorted(speed["competitive"])


def test_weights_match_between_mixtures_and_backprop_nets() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = {
        type(system).__name__ + str(size): sum(p[0].numel() for p in system.parameters)
        for kind, counts in ((Mixture, (4, 8)), (Backprop, (6, 12)))
        for size, system in ((n, kind(2, n, 0.5, generator)) for n in counts)
    }
    assert sizes == {"Mixture4": 24, "Mixture8": 48, "Backprop6": 25, "Backprop12": 49}


def test_runs_side_by_side_are_runs_alone() -> None:
    train, _ = draw(0)
    together = Mixture(3, 2, 0.5, torch.Generator().manual_seed(0))
    alone = Mixture(1, 2, 0.5, torch.Generator().manual_seed(9))
    set_weights(alone, tuple(parameter[1:2].detach() for parameter in together.parameters))
    for system in (together, alone):
        descend(system, mixture, train, step=10.0, epochs=20, criterion=0.0)
    for several, one in zip(together.parameters, alone.parameters, strict=True):
        torch.testing.assert_close(several[1:2], one, rtol=1e-4, atol=1e-5)


def test_the_criterion_keeps_the_weights_that_met_it() -> None:
    train, _ = draw(1)
    system = Mixture(2, 2, 0.5, torch.Generator().manual_seed(0))
    descent = descend(system, mixture, train, step=20.0, epochs=60, criterion=0.24)
    reached = descent.reached_R
    assert (reached > 0).all()
    assert (descent.errors_TR[reached, torch.arange(2)] <= 0.24).all()
    assert (descent.errors_TR[reached - 1, torch.arange(2)] > 0.24).all()
    set_weights(system, descent.at_criterion)
    assert measure(system, train).error.tolist() == pytest.approx(descent.errors_TR[reached, [0, 1]].tolist())


def by_hand(gates: list[list[float]], answers: list[list[float]], target: list[int]) -> tuple[object, Cases]:
    """A system with fixed gates and answers."""

    class FixedGate:
        parameters = ()

        def __call__(self, formants: Tensor) -> tuple[Tensor, Tensor]:
            return torch.tensor([answers]).unsqueeze(-1), torch.tensor([gates]).clamp(min=1e-30).log()

    count = len(target)
    return FixedGate(), Cases(
        torch.zeros(count, 2), torch.zeros(count).long(), torch.tensor(target).float().unsqueeze(1)
    )


def test_measures_of_owners_and_of_experts_that_need_each_other() -> None:
    owned = measure(*by_hand([[1, 0], [0, 1]], [[1, 0], [1, 0]], [1, 0]))
    assert owned.experts_per_case.item() == pytest.approx(1.0)
    assert owned.experts_used.item() == 2
    assert (owned.accuracy.item(), owned.winner_accuracy.item(), owned.dependence.item()) == (1, 1, 0)
    shared = measure(*by_hand([[0.6, 0.4], [0.6, 0.4]], [[0.4, 1.0], [0.0, 0.0]], [1, 0]))
    assert shared.experts_per_case.item() == pytest.approx(np.exp(-0.6 * np.log(0.6) - 0.4 * np.log(0.4)))
    assert (shared.accuracy.item(), shared.winner_accuracy.item()) == (1, 0.5)
    assert shared.dependence.item() == pytest.approx((0.36 - 0.36**2) / 2)


def test_vowels_are_speakers_apart_and_resemble_the_printed_means() -> None:
    train, test = draw(3)
    assert (len(train.vowels_N), len(test.vowels_N)) == (400, 200)
    assert torch.equal(train.target_N1.squeeze(1), (train.vowels_N % 2 == 0).float())
    for cases in (train, test):  # whole speakers: every vowel twice
        assert (cases.vowels_N.view(-1, 8) == torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])).all()
    several = [cases for seed in range(12) for cases in draw(seed)]
    count = sum(speakers for _, speakers, _ in GROUPS)
    for vowel in range(4):
        found = torch.cat([cases.formants_N2[cases.vowels_N == vowel] for cases in several]).log().mean(0)
        logs = [speakers * np.log(np.array(means[vowel]) / 1000) for _, speakers, means in GROUPS]
        assert found.tolist() == pytest.approx(sum(logs) / count, abs=0.02)
    assert torch.equal(draw(3)[0].formants_N2, train.formants_N2)
    assert not torch.equal(draw(4)[0].formants_N2, train.formants_N2)


@pytest.mark.slow
def test_experts_specialise_under_the_mixture_error_and_lean_on_each_other_under_the_cooperative_one() -> None:
    train, test = draw(0)
    found = {}
    for name in ("mixture", "cooperative"):
        system = Mixture(4, 4, 0.5, torch.Generator().manual_seed(0))
        descend(system, LOSSES[name], train, step=10.0, epochs=2500, criterion=0.0)
        found[name] = measure(system, test)
    assert found["mixture"].accuracy.min() > 0.8
    assert found["mixture"].experts_per_case.max() < found["cooperative"].experts_per_case.min()
    assert found["mixture"].dependence.abs().max() < 0.2 * found["cooperative"].dependence.min()


def row(error: str, size: int, epochs: list[int], per_case: float, dependence: float) -> dict[str, object]:
    end = {"experts_per_case": [per_case] * 2, "experts_used": [2.0] * 2, "error": [0.1] * 2}
    end["winner_error"] = [0.1 + dependence] * 2
    return {"error": error, "size": size, "epochs_to_criterion": epochs, "test_at_end": end}


def test_claims_follow_the_figures() -> None:
    good = [row("mixture", 4, [1000, 1100], 1.02, 0.0), row("mixture", 8, [900, 950], 1.03, 0.0)]
    good += [row("cooperative", 4, [500, -1], 1.3, 0.02), row("backprop", 6, [2000, 2100], 1.0, 0.0)]
    good += [row("backprop", 12, [2400, 2500], 1.0, 0.0)]
    assert [line.split(":")[0] for line in claims(good)] == ["- Reproduced"] * 4
    shared = [dict(entry) for entry in good]
    shared[0] = row("mixture", 4, [3000, 3100], 1.9, 0.05)
    verdicts = [line.split(":")[0] for line in claims(shared)]
    assert verdicts == ["- Not reproduced", "- Reproduced", "- Not reproduced", "- Reproduced"]
    unreached = [*good[:-1], row("backprop", 12, [-1, -1], 1.0, 0.0)]
    assert claims(unreached)[-1].startswith("- Not measured")


@pytest.mark.slow
def test_the_experiment_writes_three_files_and_repeats_itself(tmp_path: Path) -> None:
    progress = RecordingProgress()
    first = registry.run_experiment("jacobs", tmp_path / "a", seed=5, quick=True, progress=progress)
    registry.run_experiment("jacobs", tmp_path / "b", seed=5, quick=True)
    names = ["picture.png", "result.json", "table.md"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "a" / "result.json").read_text())["seed"] == first["seed"] == 5
    assert "prove nothing" in (tmp_path / "a" / "table.md").read_text()
    seen = [(update.done, update.total or 0) for update in progress.updates]
    assert seen == sorted(seen)
    assert seen[-1][0] < seen[-1][1]
