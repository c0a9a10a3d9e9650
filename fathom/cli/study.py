"""``fathom study``: the papers' claims as small experiments."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fathom.errors import Interrupted, SpecError
from fathom.progress import NO_METRICS, NullProgress, Progress

if TYPE_CHECKING:
    from fathom.signals import StopRequest


def study(
    name: Annotated[str | None, typer.Argument(help="An experiment; left out, they are listed.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="New folder for the table and the picture.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Decides everything that is drawn at random.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Sizes of seconds, to try the command; prove nothing.")
    ] = False,
) -> None:
    """List the experiments, or run one: it writes result.json, table.md and picture.png."""
    if name is None:
        _list()
        return
    from fathom.study.registry import find

    find(name)
    if out is None:
        raise SpecError("--out", "is missing", f"name a new folder, e.g. --out runs/study/{name}")
    _run(name, out, seed, quick)


class _Stoppable(NullProgress):
    """Draws an experiment's progress, and stops the experiment once a signal has arrived."""

    def __init__(self, display: Progress, stop: StopRequest, out: Path) -> None:
        self.display, self.stop, self.out = display, stop, out

    def update(
        self, done: float, total: float | None, unit: str, *, phase: str = "", metrics: Mapping[str, str] = NO_METRICS
    ) -> None:
        if self.stop.signal_name is not None:
            raise Interrupted(f"{self.stop.signal_name} arrived; nothing was written to {self.out}, run it again")
        self.display.update(done, total, unit, phase=phase, metrics=metrics)


def _list() -> None:
    from fathom.study.registry import EXPERIMENTS

    width = max(len(name) for name in EXPERIMENTS)
    times = max(len(experiment.minutes) for experiment in EXPERIMENTS.values())
    for name, experiment in EXPERIMENTS.items():
        print(f"{name:<{width}}  {experiment.minutes:>{times}}  {experiment.title}")
    print("\nrun one:  fathom study NAME --out DIR")


def _run(name: str, out: Path, seed: int, quick: bool) -> None:
    from fathom.cli.display import make_display
    from fathom.cli.terminal import FilteredConsole
    from fathom.signals import StopRequest
    from fathom.study.registry import run_experiment

    display = make_display(FilteredConsole())
    started = time.monotonic()
    with StopRequest() as stop:
        display.stage(name, 1, 1)
        try:
            run_experiment(name, out, seed=seed, quick=quick, progress=_Stoppable(display, stop, out))
            display.finish(time.monotonic() - started)
        finally:
            display.close()
    print(f"\n{(out / 'table.md').read_text(encoding='utf-8')}")
    for file in ("table.md", "picture.png", "result.json"):
        print(out / file)
