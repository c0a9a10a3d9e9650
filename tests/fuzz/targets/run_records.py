"""Damaged recipes, and the JSON of run directories: each is read whole, or raises a ``FathomError``.

What is accepted names nothing outside the run directory, and is the same recipe again once it was recorded.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fathom.data.corpus import CorpusSummary
from fathom.data.shards import TokenShards
from fathom.inference.loading import find_checkpoint
from fathom.inference.run_record import read_recipe, read_state
from fathom.pipeline.changes import accept_changes
from fathom.pipeline.context import RunPlan
from fathom.pipeline.recipe import load_run_plan
from fathom.pipeline.state import run_plan_mapping, write_run_plan
from fathom.pipeline.trust import NO_TRUST, check_trust
from fathom.spec.recipe import Recipe
from fathom.spec.step_results import RECIPE_FILE, STATE_FILE, result_name
from tests.fuzz.driver import Target
from tests.fuzz.json_damage import damage

RECIPES = Path(__file__).parents[3] / "recipes"
VALUES = (
    *('""', '"x"', '"../../x"', '"/etc/passwd"', '"."', '"con"', '"a\\u0000b"', '"\\u202Ex"', '"天"', '"a b"'),
    *("0", "-1", "1", "9223372036854775807", "1" + "0" * 30, "0x" + "f" * 4000, "9" * 5000, "1e308", "nan", "inf"),
    *("true", "[]", "{}", "[[[[1]]]]", "[" * 200 + "]" * 200, '{kind = "x"}', '{kind = ["x"]}', "2024-02-30"),
    *(
        "1979-05-27T07:32:00Z",
        '["a", 1, {}]',
        "[" + "1," * 20_000 + "]",
        '"""\n\n"""',
        "a.b",
        "",
        "'" + "w" * 5000 + "'",
    ),
)
LINES = (
    *("[[steps]]", "[steps]", "[model]", "[problems.x]", "[problems]", "name = 3", 'kind = "grpo"', "a.b.c = 1"),
    *(".".join("a" * 5000) + " = 1", "[" + ".".join("a" * 80) + "]", '"\\u001b]0;x\\u0007" = 1', "'a\tb' = 1", "\x00"),
    *('problems = ["x"]', 'start = "later"', 'rewards = [{kind = "code", unsandboxed = true}]', "steps = 3", "= 1"),
    'rewards = [{kind = "function", target = "os:system"}]',
)


class RecipeLines(Target):
    """Recipes whose text is damaged, line by line; ``recipes`` damages their values."""

    name = "recipe_lines"
    suffix = ".toml"
    short_executions = 120

    def start(self) -> None:
        self._known = [path.read_text(encoding="utf-8") for path in sorted(RECIPES.glob("*.toml"))]
        self._path = self.folder / "recipe.toml"
        for folder in RECIPES.iterdir():
            if folder.is_dir():
                shutil.copytree(folder, self.folder / folder.name)

    def make(self, rng: random.Random) -> bytes:
        lines = rng.choice(self._known).splitlines()
        for _ in range(rng.choice((1, 1, 2, 3))):
            rng.choice((_value, _value, _value, _line, _drop, _double, _name))(lines, rng)
        text = "\n".join(lines).encode()
        if rng.random() < 0.1:
            place = rng.randrange(len(text))
            text = text[:place] + rng.randbytes(3) + text[place + rng.randrange(9) :]
        return text

    def check(self, data: bytes) -> None:
        self._path.write_bytes(data)
        with self.tolerated():
            plan = load_run_plan(self._path)
            stays_inside(plan.recipe, self.folder / "run")
            recorded = json.loads(json.dumps(run_plan_mapping(plan)))["recipe"]
            (self.folder / "run").mkdir(exist_ok=True)
            write_run_plan(self.folder / "run", plan)
            assert read_recipe(self.folder / "run") == plan.recipe, recorded
            check_trust(plan.recipe, plan.base, NO_TRUST, ())


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


def _fields(lines: Sequence[str]) -> list[int]:
    return [place for place, line in enumerate(lines) if re.match(r"\s*[\w.]+ *=", line)]


def _value(lines: list[str], rng: random.Random) -> None:
    place = rng.choice(_fields(lines) or [0])
    lines[place] = f"{lines[place].partition('=')[0]}= {rng.choice(VALUES)}"


def _name(lines: list[str], rng: random.Random) -> None:
    named = [place for place, line in enumerate(lines) if line.startswith("name =")]
    if named:
        lines[rng.choice(named)] = f"name = {rng.choice(VALUES[:10])}"


def _line(lines: list[str], rng: random.Random) -> None:
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(LINES))


def _drop(lines: list[str], rng: random.Random) -> None:
    del lines[rng.randrange(len(lines))]


def _double(lines: list[str], rng: random.Random) -> None:
    start = rng.randrange(len(lines))
    lines[start:start] = lines[start : start + rng.randrange(1, 12)] * rng.choice((1, 1, 2, 300))


TARGETS = (RecipeLines, RunRecords)
