"""GRPO's answers a minute with the native step and without, from a run that has come as far as its SFT step.

    python -m benchmarks.rollouts runs/quickstart

Each turn copies the run, takes its first ``--count`` rollouts of the GRPO step with ``fathom train``, and reads the
step's own metrics: seconds of rollout and update, and by how much the sampler's log-probabilities differ from the
trainer's. ``FATHOM_NATIVE=0`` makes the second contestant.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import peers
from fathom.spec.step_results import STATE_FILE
from fathom.train.metrics import read_json_lines

CONTESTANTS = {"native": "1", "modules": "0"}


def copy_before(run: Path, step: str, copy: Path) -> None:
    """Copy a run as it was before a step began."""
    steps = json.loads((run / STATE_FILE).read_text())["steps"]
    later = list(steps)[list(steps).index(step) :] if step in steps else [step]
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns(*later, "report.*"))
    kept = {name: state for name, state in steps.items() if name not in later}
    (copy / STATE_FILE).write_text(json.dumps({"steps": kept}))


def rollouts(run: Path, step: str, native: str, count: int) -> list[dict[str, Any]]:
    """Return the metrics of a fresh GRPO step's first rollouts; the first, which warms up, is left out."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        copy_before(run, step, copy)
        fathom = [sys.executable, "-c", "from fathom.cli.main import main; main()"]
        command = [*fathom, "train", "--resume", "--allow-changes", "--out", str(copy), "--until", step]
        command += ["--set", f"{step}.policy.rollouts={count}"]
        subprocess.run(command, check=True, env=os.environ | {"FATHOM_NATIVE": native}, stdout=subprocess.DEVNULL)
        return read_json_lines(copy / step / "metrics.jsonl")[1:]


def answers(line: dict[str, Any]) -> float:
    """Return how many answers a rollout had."""
    return float(line["tokens"] / line["length"])


def seconds(line: dict[str, Any]) -> float:
    """Return what a rollout and its update took."""
    return float(line["rollout_seconds"] + line["update_seconds"])


def measure(a: argparse.Namespace) -> dict[str, object]:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
    for _ in range(a.rounds):
        for name, native in CONTESTANTS.items():
            found[name] += rollouts(a.run, a.step, native, a.count)
    medians = {
        name: {
            field: statistics.median(line[field] for line in lines)
            for field in ("rollout_seconds", "update_seconds", "rollout_tokens_per_second")
        }
        | {
            "tokens": sum(line["tokens"] for line in lines),
            "answers_per_minute": round(60 * sum(map(answers, lines)) / sum(map(seconds, lines)), 1),
            "logprob_difference": max(line["logprob_difference"] for line in lines),
            "logprob_difference_p99": max(line["logprob_difference_p99"] for line in lines),
        }
        for name, lines in found.items()
    }
    speed = {name: values["answers_per_minute"] for name, values in medians.items()}
    return {"contestants": medians, "times": round(speed["native"] / speed["modules"], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--step", default="grpo", help="the GRPO step's name")
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    a = parser.parse_args()
    head = {"run": a.run.name, "step": a.step, "rollouts": a.count, "rounds": a.rounds}
    peers.write(f"rollouts-{a.run.name}", head | measure(a), a.out)


if __name__ == "__main__":
    main()
