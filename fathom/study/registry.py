"""The experiments by name. Listing them imports neither torch nor matplotlib; a module loads when it runs.

An experiment is a module with ``run(directory, *, seed, quick, progress)``. It writes result.json (every setting and
figure), table.md and picture.png into ``directory``, which exists and is empty, and returns what result.json holds. The
same seed gives the same files on the same machine. ``quick`` asks for sizes that take seconds and show nothing. It
reports between steps, often enough that an implementation of ``Progress`` can stop it by raising.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, cast

from fathom.errors import SpecError
from fathom.files import publish_directory
from fathom.progress import NULL_PROGRESS, Progress


class ExperimentFn(Protocol):
    """An experiment's entry."""

    def __call__(self, directory: Path, *, seed: int, quick: bool, progress: Progress) -> dict[str, Any]:
        """Run it, write its three files into ``directory``, and return what result.json holds."""
        ...


@dataclass(frozen=True, slots=True)
class Experiment:
    """``title`` is one line, ``minutes`` what it takes on two cores, ``module`` where its ``run`` is."""

    name: str
    title: str
    minutes: str
    module: str

    def load(self) -> ExperimentFn:
        """Import the module and return its ``run``."""
        return cast(ExperimentFn, importlib.import_module(self.module).run)


_LISTED = (
    Experiment(
        name="jacobs",
        title="Jacobs 1991: local experts specialise under one error function and not under another",
        minutes="2 min",
        module="fathom.study.jacobs",
    ),
    Experiment(
        name="shazeer",
        title="Shazeer 2017: noisy top-k gating between LSTM layers, balance losses and expert counts",
        minutes="4 min",
        module="fathom.study.shazeer",
    ),
    Experiment(
        name="gshard",
        title="GShard: top-2 experts against a dense encoder-decoder on many languages, with and without its loss",
        minutes="2 min",
        module="fathom.study.gshard",
    ),
    Experiment(
        name="routers",
        title="Dense, hash, Switch, GShard and DeepSeekMoE routers at equal active parameters, and router precision",
        minutes="6 min",
        module="fathom.study.routers",
    ),
)

EXPERIMENTS: Mapping[str, Experiment] = MappingProxyType({entry.name: entry for entry in _LISTED})


def find(name: str) -> Experiment:
    """Return the experiment of that name.

    Raises:
        SpecError: there is none.
    """
    if name not in EXPERIMENTS:
        raise SpecError("name", f"no experiment is called {name!r}", f"use one of {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def run_experiment(
    name: str, directory: Path, *, seed: int = 0, quick: bool = False, progress: Progress = NULL_PROGRESS
) -> dict[str, Any]:
    """Run an experiment, publish its files at ``directory`` atomically, and return its result.

    Raises:
        SpecError: no experiment has that name, or the seed is negative.
        DataError: ``directory`` is not empty.
        ResourceError: it cannot be written.
    """
    experiment = find(name)
    if seed < 0:
        raise SpecError("seed", f"got {seed}", "use 0 or more")
    with publish_directory(directory) as temporary:
        return experiment.load()(temporary, seed=seed, quick=quick, progress=progress)
