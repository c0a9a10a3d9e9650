"""Losses of the quickstart's first steps, to the last digit: what a change of structure must not change on a CPU.

    python -m benchmarks.first_steps --out before.json      # in the checkout before the change
    python -m benchmarks.first_steps --against before.json  # after it

Trains the quickstart's pretraining step for ``--steps`` steps, each logged, in a run directory of its own, and compares
every loss, gradient norm and expert load that both runs logged. Equal figures need the same processor, number of
threads and torch; the file names them. Exits with 1 where a figure differs. ``benchmarks/results`` has the
steps as they were before names and seams were changed, on two threads of a Xeon.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

RECIPE = Path("recipes/quickstart.toml")
TOKENS_PER_STEP = 8 * 256
COMPARED = ("loss", "lm_loss", "balance_loss", "grad_norm", "bits_per_byte", "load_entropy", "dropped_fraction")


def train(steps: int, directory: Path) -> list[dict[str, Any]]:
    """Train in a process of its own and return what every step logged."""
    settings = {"total_tokens": steps * TOKENS_PER_STEP, "log_every_steps": 1}
    options = [part for name, value in settings.items() for part in ("--set", f"pretrain.train.{name}={value}")]
    command = [sys.executable, "-c", "from fathom.cli.main import main; main()", "train", str(RECIPE)]
    command += ["--out", str(directory), "--until", "pretrain", *options]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(command, check=True, env=environment)
    lines = (directory / "pretrain" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: line[name] for name in ("step", *COMPARED) if name in line} for line in map(json.loads, lines)]


def differences(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[str]:
    """Return one line for each figure that is not the same to the last digit."""
    found = [f"{len(before)} steps against {len(after)}"] if len(before) != len(after) else []
    for old, new in zip(before, after, strict=False):
        found += [
            f"step {old['step']}: {name} {old[name]!r} -> {new.get(name)!r}"
            for name in old
            if old[name] != new.get(name)
        ]
    return found


def main() -> None:
    """Train, write and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--directory", type=Path, help="keep the run directory here")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = train(a.steps, a.directory or Path(temporary) / "run")
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "processor": platform.processor()}
    document = {"recipe": str(RECIPE), "machine": machine, "steps": rows}
    if a.out is not None:
        a.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if a.against is not None:
        found = differences(json.loads(a.against.read_text(encoding="utf-8"))["steps"], rows)
        print("\n".join(found) or f"{len(rows)} steps: every figure equal to the last digit")
        raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
