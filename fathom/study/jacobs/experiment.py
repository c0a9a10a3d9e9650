"""The experiment on vowels: three error functions, mixtures of 2 to 8 experts and two backprop nets, many runs each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fathom.progress import Progress
from fathom.study.jacobs.figure import draw_figure
from fathom.study.jacobs.losses import LOSSES, cooperative
from fathom.study.jacobs.measures import Measures, measure
from fathom.study.jacobs.systems import Backprop, Mixture, System, TrainingHistory, descend, set_weights
from fathom.study.jacobs.table import make_table
from fathom.study.jacobs.vowels import CORRELATION, GROUPS, SHARES, SPREAD, VOWELS, Cases, draw
from fathom.study.results import environment, write_results
from fathom.study.threads import one_thread


@dataclass(frozen=True, slots=True)
class StudyConfig:
    """``steps`` are tried with ``trial_runs`` runs each, and the fastest is used, as the paper chose its own.

    Initial weights are small, so that gates start even, as the paper's did.
    """

    runs: int = 25
    experts: tuple[int, ...] = (2, 4, 8)
    hidden: tuple[int, ...] = (6, 12)
    steps: tuple[float, ...] = (2.5, 5.0, 10.0, 20.0)
    trial_runs: int = 5
    epochs: int = 3000
    criterion: float = 0.08
    initial_scale: float = 0.1


QUICK = StudyConfig(runs=3, experts=(2, 4), hidden=(6,), steps=(10.0, 20.0), trial_runs=2, epochs=40)


@dataclass(frozen=True, slots=True)
class SystemResult:
    """One row of the table: ``error`` is a name in ``LOSSES`` or "backprop", ``system`` holds the last weights."""

    error: str
    size: int
    step: float
    tried: dict[str, int]
    descent: TrainingHistory
    system: System
    train_at_criterion: Measures
    test_at_criterion: Measures
    test_at_end: Measures

    @property
    def weights(self) -> int:
        """Weights of one run."""
        return sum(parameter[0].numel() for parameter in self.system.parameters)


def run(directory: Path, *, seed: int, quick: bool, progress: Progress) -> dict[str, Any]:
    """Train every system and write what came of it."""
    with one_thread():
        return _run(directory, seed, quick, progress)


def _run(directory: Path, seed: int, quick: bool, progress: Progress) -> dict[str, Any]:
    settings = QUICK if quick else StudyConfig()
    train, test = draw(seed)
    asked = [(error, size) for error in LOSSES for size in settings.experts]
    asked += [("backprop", size) for size in settings.hidden]
    per_system, rows = len(settings.steps) + 1, []
    for index, (error, size) in enumerate(asked):

        def heartbeat(done: int, name: str = f"{error} {size}", before: int = index * per_system) -> None:
            progress.update(before + done, len(asked) * per_system, "trainings", phase=name)

        rows.append(_train(error, size, settings, seed, (train, test), heartbeat))
    result = {
        "experiment": "jacobs",
        "seed": seed,
        "quick": quick,
        "settings": dataclasses.asdict(settings),
        "data": {"kind": "synthetic stand-in for Peterson and Barney 1952", "train": len(train.vowels_N)}
        | {"test": len(test.vowels_N), "vowels": VOWELS, "groups": GROUPS, "spread": SPREAD}
        | {"correlation": CORRELATION, "shares": SHARES},
        "environment": environment(),
        "systems": [_as_json(row) for row in rows],
    }
    shown = max(size for size in settings.experts if size <= 4)
    figure = draw_figure([row for row in rows if row.error != "backprop" and row.size == shown], rows, test, settings)
    write_results(directory, result, make_table(result), figure)
    return result


def _train(
    error: str,
    size: int,
    settings: StudyConfig,
    seed: int,
    cases: tuple[Cases, Cases],
    heartbeat: Callable[[int], None],
) -> SystemResult:
    """Choose a step on a few runs, then train all runs with it."""
    train, test = cases
    loss = LOSSES.get(error, cooperative)

    def fresh(runs: int) -> System:
        kind = Backprop if error == "backprop" else Mixture
        return kind(runs, size, settings.initial_scale, torch.Generator().manual_seed(seed))

    def descended(system: System, step: float, done: int, stop: bool) -> TrainingHistory:
        return descend(
            system,
            loss,
            train,
            step=step,
            epochs=settings.epochs,
            criterion=settings.criterion,
            stop_when_reached=stop,
            heartbeat=lambda: heartbeat(done),
        )

    epochs = {}
    for done, step in enumerate(settings.steps):
        reached_R = descended(fresh(settings.trial_runs), step, done, True).reached_R
        epochs[step] = int(torch.where(reached_R < 0, settings.epochs, reached_R).sum())
    step = min(epochs, key=lambda tried: epochs[tried])
    system = fresh(settings.runs)
    descent = descended(system, step, len(settings.steps), False)
    last = tuple(parameter.detach().clone() for parameter in system.parameters)
    at_end = measure(system, test)
    set_weights(system, descent.at_criterion)
    at_criterion = measure(system, train), measure(system, test)
    set_weights(system, last)
    tried = {f"{tried:g}": total // settings.trial_runs for tried, total in epochs.items()}
    return SystemResult(error, size, step, tried, descent, system, *at_criterion, at_end)


def _as_json(row: SystemResult) -> dict[str, Any]:
    def plain(measures: Measures) -> dict[str, list[float]]:
        values = {field.name: getattr(measures, field.name) for field in dataclasses.fields(measures)}
        return {name: [round(v, 5) for v in tensor.tolist()] for name, tensor in values.items()}

    return {
        "error": row.error,
        "size": row.size,
        "weights": row.weights,
        "step": row.step,
        "mean_epochs_of_tried_steps": row.tried,
        "epochs_to_criterion": row.descent.reached_R.tolist(),
        "train_at_criterion": plain(row.train_at_criterion),
        "test_at_criterion": plain(row.test_at_criterion),
        "test_at_end": plain(row.test_at_end),
        "error_every_50_epochs": [round(v, 5) for v in row.descent.errors_TR.mean(1)[::50].tolist()],
    }
