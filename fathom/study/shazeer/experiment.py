"""The experiment: the balance losses switched on and off, and more experts for the same work per token."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fathom.progress import Progress
from fathom.study.results import environment, write_results
from fathom.study.shazeer.corpus import HELD_OUT_EVERY, Corpus
from fathom.study.shazeer.figure import draw_figure
from fathom.study.shazeer.layer import Layout
from fathom.study.shazeer.table import make_table
from fathom.study.shazeer.training import Settings, train
from fathom.study.threads import one_thread


@dataclass(frozen=True, slots=True)
class ModelVariant:
    """A model to train; ``ablation`` rows are compared by their losses, ``counts`` rows by their experts."""

    layout: Layout
    importance_weight: float = 0.1
    load_weight: float = 0.1
    ablation: bool = False
    counts: bool = True


MODELS = (
    ModelVariant(Layout(4, 4)),
    ModelVariant(Layout(32, 4)),
    ModelVariant(Layout(256, 4), ablation=True),
    ModelVariant(Layout(256, 2, groups=16)),
    ModelVariant(Layout(256, 4), 0.0, 0.0, ablation=True, counts=False),
    ModelVariant(Layout(256, 4), 0.2, 0.0, ablation=True, counts=False),
    ModelVariant(Layout(256, 4), 0.0, 0.2, ablation=True, counts=False),
)
"""The paper's MoE-4 to MoE-256-h (table 7) and its rows of losses (table 6)."""

QUICK_MODELS = (
    ModelVariant(Layout(4, 4)),
    ModelVariant(Layout(16, 4), ablation=True),
    ModelVariant(Layout(16, 2, groups=4)),
    ModelVariant(Layout(16, 4), 0.0, 0.0, ablation=True, counts=False),
)
QUICK = Settings(vocabulary=300, width=16, hidden=16, steps=6, batch=4, length=12, warmup=3, evaluation_batches=2)


def run(directory: Path, *, seed: int, quick: bool, progress: Progress) -> dict[str, Any]:
    """Train every model and write what came of it."""
    with one_thread():
        return _run(directory, seed, quick, progress)


def _run(directory: Path, seed: int, quick: bool, progress: Progress) -> dict[str, Any]:
    settings, models = (QUICK, QUICK_MODELS) if quick else (Settings(), MODELS)
    rows, total, done = [], settings.steps * len(models), 0
    progress.update(0, total, "steps", phase="learning a vocabulary")
    corpus = Corpus.read(settings.vocabulary, files=2 * HELD_OUT_EVERY if quick else None)
    for model in models:
        name = f"{model.layout.name}, weights {model.importance_weight:g} and {model.load_weight:g}"

        def tick(step: int, name: str = name, before: int = done) -> None:
            progress.update(before + step, total, "steps", phase=name)

        weights = (model.importance_weight, model.load_weight)
        measured = train(corpus, model.layout, weights, settings, seed, tick)
        rows.append({"name": model.layout.name} | dataclasses.asdict(model) | _rounded(dataclasses.asdict(measured)))
        done += settings.steps
    result = {
        "experiment": "shazeer",
        "seed": seed,
        "quick": quick,
        "settings": dataclasses.asdict(settings),
        "corpus": {"text": "top modules of Python's standard library", "files": corpus.files}
        | {"train_bytes": corpus.train_bytes, "train_tokens": len(corpus.train), "sha256": corpus.sha256},
        "environment": environment(),
        "models": rows,
    }
    write_results(directory, result, make_table(result), draw_figure(rows))
    return result


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(entry) for entry in value]
        return round(value, 5) if isinstance(value, float) else value

    return {name: short(value) for name, value in values.items()}
