"""What recipes reached on held-out problems, by the results of `python -m benchmarks.recipes`: one table a recipe."""

from __future__ import annotations

import json
import sys
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

for name in sys.argv[1:]:
    result = json.loads((RESULTS / f"recipe-{name}.json").read_text(encoding="utf-8"))
    print(f"{name}: accuracy in percent, 95 % interval, and the rise over the stage before on the same problems")
    for number, run in enumerate(result["runs"], start=1):
        minutes = sum(run["seconds"].values()) / 60
        print(f"  run {number} of {len(result['runs'])} ({minutes:.0f} min)")
        for task, stages in run["tasks"].items():
            for stage, score in stages.items():
                value, low, high = (100 * score[part] for part in ("accuracy", "low", "high"))
                line = (
                    f"    {task:18} {stage:14} {value:5.1f}  ({low:4.1f} to {high:4.1f}), {score['tokens']:4.0f} tokens"
                )
                if "pass@4" in score:
                    line += f", pass@4 {100 * score['pass@4']['value']:3.0f}"
                change = score.get("change")
                if change:
                    rise, least, most = (100 * change[part] for part in ("value", "low", "high"))
                    line += f"   {rise:+5.1f}  ({least:+5.1f} to {most:+5.1f})"
                print(line)
        for policy, output in run["policies"].items():
            difference = output["largest_logprob_difference"]
            print(f"    {policy}: {output['rollouts']} rollouts; largest difference of log-probs {difference:.1e}")
