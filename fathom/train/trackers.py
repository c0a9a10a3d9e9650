"""Viewers of metrics beside metrics.jsonl: TensorBoard, Weights & Biases and Trackio."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fathom.errors import ENVIRONMENT_ERRORS, SpecError, explain_os_error
from fathom.extras import install_extra
from fathom.files import sha256
from fathom.spec.recipe import TRACKERS

PROJECT = "fathom"


class Tracker(Protocol):
    """Takes the numbers of metrics.jsonl to a viewer."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Show one step's numbers; nested ones get names joined with a slash."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    """Which trackers a stage writes to, under which ``run`` name, and the ``settings`` that they show of it."""

    names: tuple[str, ...] = ()
    run: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def open(self, directory: Path, *, after_step: int, note: Callable[[str], None]) -> list[Tracker]:
        """Open every tracker for a stage that stands after ``after_step``.

        A tracker that cannot write is noted and left out: training does not depend on it.
        """
        found: list[Tracker] = []
        for name in self.names:
            try:
                found.append(_OPENERS[name](self, directory, after_step))
            except OSError as error:
                why = explain_os_error(error) if error.errno in ENVIRONMENT_ERRORS else str(error)
                note(f"{directory}: {name} is left out, {why}")
            except ImportError as error:
                remedy = install_extra(_extra(name))
                note(f"{directory}: {name} is left out, it cannot be imported ({error}); {remedy} adds it")
        return found


NO_TRACKING = Tracking()


def chosen_trackers(named: tuple[str, ...]) -> tuple[str, ...]:
    """Return the trackers of a run: those named, or TensorBoard where it is installed and none is.

    Raises:
        SpecError: one that is named is not installed.
    """
    for name in named:
        if importlib.util.find_spec(name) is None:
            raise SpecError("track", f"{name} is not installed", install_extra(_extra(name)))
    return named or tuple(name for name in TRACKERS[:1] if importlib.util.find_spec(name) is not None)


def _extra(name: str) -> str:
    return "track" if name == "tensorboard" else name


class TensorBoard:
    """Writes scalars where TensorBoard finds them; steps after ``after_step`` that are already there are hidden."""

    def __init__(self, directory: Path, *, after_step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer: Any = SummaryWriter(str(directory), purge_step=after_step + 1)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Show one step's numbers."""
        for name, value in scalars(values):
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Finish."""
        self._writer.close()


class _RunTracker:
    """Writes to a run of a library with wandb's interface; a resumed stage goes on in the run it began."""

    _run: Any

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Show one step's numbers."""
        self._run.log(dict(scalars(values)), step=step)

    def close(self) -> None:
        """Finish."""
        self._run.finish()


class WeightsAndBiases(_RunTracker):
    """Writes to Weights & Biases as its own settings say, to its server unless WANDB_MODE is offline."""

    def __init__(self, tracking: Tracking, directory: Path) -> None:
        import wandb

        directory.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=PROJECT,
            name=tracking.run,
            id=run_id(directory),
            resume="allow",
            dir=str(directory),
            config=dict(tracking.settings),
        )


class Trackio(_RunTracker):
    """Writes to Trackio's database on this machine, which ``trackio show`` displays."""

    def __init__(self, tracking: Tracking, directory: Path) -> None:
        import trackio

        self._run = trackio.init(
            project=PROJECT,
            name=f"{tracking.run}-{run_id(directory)}",
            resume="allow",
            config=dict(tracking.settings),
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )


def run_id(directory: Path) -> str:
    """Return a name of a stage that is the same whenever it is resumed in its directory."""
    return sha256(str(directory.resolve()))[:10]


def scalars(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a line of metrics; nested ones get names joined with a slash."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from scalars({f"{name}/{inner}": number for inner, number in value.items()})
        elif isinstance(value, int | float):
            yield name, value


_OPENERS: Mapping[str, Callable[[Tracking, Path, int], Tracker]] = {
    "tensorboard": lambda tracking, directory, after: TensorBoard(directory / "tensorboard", after_step=after),
    "wandb": lambda tracking, directory, after: WeightsAndBiases(tracking, directory),
    "trackio": lambda tracking, directory, after: Trackio(tracking, directory),
}
