"""Damaged JSON of run directories: what is read names nothing outside the directory."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from fathom.data.corpus import CorpusSummary
from fathom.data.shards import TokenShards
from fathom.inference.loading import find_checkpoint
from fathom.inference.run_record import read_recipe, read_state
from fathom.pipeline.changes import accept_changes
from fathom.pipeline.context import RunPlan
from fathom.pipeline.recipe import load_run_plan
from fathom.pipeline.state import run_plan_mapping
from fathom.spec.recipe import Recipe
from fathom.spec.step_results import RECIPE_FILE, STATE_FILE, result_name
from tests.fuzz.driver import Target
from tests.fuzz.json_damage import damage

RECIPES = Path(__file__).parents[3] / "recipes"


class RunRecords(Target):
    """A run directory of which one JSON file is damaged."""

    name = "run_records"
    suffix = ".json"
    short_executions = 150

    def start(self) -> None:
        self._run = self.folder / "run"
        self._plan = load_run_plan(RECIPES / "quickstart.toml")
        steps = {step.name: {"status": "done", "seconds": 1.5, "inputs": "0" * 16} for step in self._plan.recipe.steps}
        source = {"language": "en", "licence": "x", "weight": 1.0}
        shard = {"file": "00000.bin", "tokens": 2, "documents": 1, "text_bytes": 9, "sha256": "0" * 64}
        index = {"source": "x", "split": "train", "dtype": "<u2", "vocab_size": 9, "tokenizer": "t", "format": 1}
        self._files = {
            RECIPE_FILE: run_plan_mapping(self._plan),
            STATE_FILE: {"steps": steps},
            "corpus/summary.json": {"documents": 1, "bytes": 9, "sources": {"x": source}},
            "shards/index.json": index | {"shards": [shard]},
        }
        for name, content in self._files.items():
            self._write(name, content)
        (self._run / "shards" / "00000.bin").write_bytes(bytes(4))

    def make(self, rng: random.Random) -> bytes:
        name = rng.choice(list(self._files))
        return json.dumps([name, damage(self._files[name], rng)]).encode()

    def check(self, data: bytes) -> None:
        name, content = json.loads(data)
        self._write(name, content)
        try:
            with self.tolerated():
                self._read(name)
        finally:
            self._write(name, self._files[name])

    def _read(self, name: str) -> None:
        if name == RECIPE_FILE:
            stays_inside(read_recipe(self._run), self._run)
        if name == "corpus/summary.json":
            for source in CorpusSummary.load(self._run / "corpus").sources:
                assert (self._run / source).resolve().parent == self._run.resolve()
        elif name == "shards/index.json":
            TokenShards.open(self._run / "shards").read(0, 2)
        else:
            plan = RunPlan(recipe=self._plan.recipe, manifests=self._plan.manifests)
            accept_changes(self._run, plan, read_state(self._run), allow_changes=True)
            find_checkpoint(self._run)

    def _write(self, name: str, content: Any) -> None:
        path = self._run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")


def stays_inside(recipe: Recipe, run: Path) -> None:
    """Require that whatever a recipe leaves lies directly in its run directory, and the run in ``runs``."""
    for step in recipe.steps:
        assert (run / result_name(step)).resolve().parent == run.resolve(), step.name
    assert (run / recipe.name).resolve().parent == run.resolve(), recipe.name


TARGETS = (RunRecords,)
