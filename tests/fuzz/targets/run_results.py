"""What the steps of a run left, damaged: a report of it is drawn, or the file that is none is named."""

from __future__ import annotations

import json
import random
from typing import Any

from fathom.inference.run_record import StepState
from fathom.pipeline.recipe import load_run_plan
from fathom.pipeline.report import charts, posttraining_charts
from fathom.pipeline.report.collect import collect
from fathom.pipeline.report.data import RunData
from fathom.pipeline.report.summary import summary
from fathom.spec.step_results import result_name
from tests.fuzz.driver import Target
from tests.fuzz.json_damage import damage
from tests.fuzz.targets.run_records import RECIPES
from tests.json_lines import write_json_lines


class RunResults(Target):
    """A run directory of which one result is damaged, and the parts of its report."""

    name = "run_results"
    suffix = ".json"
    short_executions = 8

    def start(self) -> None:
        self._recipe = load_run_plan(RECIPES / "quickstart.toml").recipe
        self._report = next(step for step in self._recipe.steps if step.kind == "report")
        self._states = {
            step.name: StepState(status="done", seconds=1.0, inputs="0" * 16) for step in self._recipe.steps
        }
        self._files: dict[str, Any] = {}
        for step in self._recipe.steps:
            self._files |= _results(step.kind, step.name, result_name(step), [s.name for s in self._recipe.steps])
        for name, content in self._files.items():
            self._write(name, content)
        drawn(collect(self._recipe, self.folder, self._states, self._report))  # whole, and everything is imported

    def make(self, rng: random.Random) -> bytes:
        name = rng.choice(list(self._files))
        return json.dumps([name, damage(self._files[name], rng)]).encode()

    def check(self, data: bytes) -> None:
        name, content = json.loads(data)
        self._write(name, content)
        try:
            with self.tolerated():
                drawn(collect(self._recipe, self.folder, self._states, self._report))
        finally:
            self._write(name, self._files[name])

    def _write(self, name: str, content: Any) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = content if name.endswith(".jsonl") and isinstance(content, list) else [content]
        write_json_lines(path, lines)


def drawn(data: RunData) -> None:
    """Draw what a page would, and write what its JSON would."""
    json.dumps(data.to_json(), ensure_ascii=False).encode()
    "".join(summary(data)).encode()
    charts.loss_chart(data.losses)
    charts.bits_chart(data.bits_over_training)
    if data.expert_loads:
        charts.load_chart(data.expert_loads)
    if data.needle is not None:
        charts.needle_chart(data.needle)
    if data.tasks:
        posttraining_charts.tasks_chart(data.tasks)
    for curves in (*data.online, *data.preferences):
        posttraining_charts.step_chart(curves, "steps")


def _results(kind: str, name: str, file: str, steps: list[str]) -> dict[str, Any]:
    """Return the files of a step, as it writes them."""
    rows = [{"step": s, "tokens": 9 * s, "seconds": 0.5, "lm_loss": 2.0, "reward": 0.5, "length": 3} for s in (1, 2)]
    if kind == "train":
        experts = [{"step": step, "layers": {"layers.1": [0.25, 0.75]}} for step in (1, 2)]
        rows = [row | {"evaluation": {"texts": 1.5}, "dropped_fraction": 0.1} for row in rows]
        return {f"{name}/metrics.jsonl": rows, f"{name}/experts.jsonl": experts}
    if kind in ("sft", "dpo", "grpo", "distill"):
        return {f"{name}/metrics.jsonl": rows}
    if kind == "evaluate":
        return {file: {"start": {"texts": 8.0}, "end": {"texts": 2.0}, "tokens": {"texts": 9}}}
    if kind == "needle":
        table = [[0.5, 1.0], [0.0, 0.25]]
        return {file: {"lengths": [48, 96], "depths": [0.0, 1.0], "accuracy": table, "gain_bits": table, "trials": 2}}
    if kind == "sample":
        return {file: {"samples": [{"prompt": "a", "continuation": "b"}]}}
    if kind == "tasks":
        part = {"value": 0.1, "low": 0.0, "high": 0.2}
        score = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 9, "tokens": 3.5, "finished": 1.0, "pass@2": part}
        answers = {steps[0]: {"text": "4", "correct": True, "finished": True, "tokens": 3}}
        example = {"id": "p", "question": "2+2?", "expected": "4", "answers": answers}
        scores = {steps[0]: score, steps[1]: score | {"change": part | {"before": steps[0]}}}
        return {file: {"tasks": {"sums": scores}, "examples": {"sums": [example]}}}
    return {}


TARGETS = (RunResults,)
