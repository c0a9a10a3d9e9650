"""A GRPO step beside TRL's over transformers, from what `python -m benchmarks.rl` left in benchmarks/results."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

for path in sorted(RESULTS.glob("rl-*-cpu.json")):
    result = json.loads(path.read_text(encoding="utf-8"))
    answers = result["questions"] * result["group"]
    print(
        f"shape {result['shape']}, prompts of {result['prompt']} tokens, {answers} answers of {result['answer']}, "
        f"{result['machine']['processor']}, {result['machine']['threads']} thread(s)"
    )
    print(f"  {'tokens/s':10} {'fathom':>10} {'trl':>10} {'ratio':>8}")
    for phase in ("rollout", "update", "step"):
        speed, ratio = result[phase]["per_second"], result[phase]["times_peer"]["fathom"]
        print(f"  {phase:10} {speed['fathom']:10.0f} {speed['trl']:10.0f} {ratio:7.2f}x")
