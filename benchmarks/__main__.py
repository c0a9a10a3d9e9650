"""Run every benchmark at the documented settings and write JSON under benchmarks/out (or --out)."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

DECODE = ("benchmarks.native", "decode", "--shape")
PROMPT = ("benchmarks.native", "prompt", "--context", "2048", "--rounds", "5", "--shape")
RUNS = (
    ("benchmarks.cache_bytes",),
    ("benchmarks.train_step", "--shape", "t"),
    ("benchmarks.train_step", "--shape", "s"),
    (*DECODE, "s"),
    (*DECODE, "m", "--steps", "16", "--rounds", "5"),
    (*DECODE, "s", "--batch", "16"),
    (*DECODE, "m", "--batch", "16", "--steps", "8", "--rounds", "5"),
    (*DECODE, "s", "--context", "8192", "--steps", "8", "--rounds", "5"),
    (*DECODE, "smollm2"),
    (*DECODE, "smollm2", "--batch", "16", "--rounds", "5"),
    (*PROMPT, "s"),
    (*PROMPT, "m"),
    ("benchmarks.llama_texts",),
    ("benchmarks.rollouts", "runs/quickstart"),
    ("benchmarks.serve", "requests", "--shape", "s", "--batch", "16", "--rounds", "3"),
    ("benchmarks.serve", "prefill", "--shape", "s", "--context", "2048", "--rounds", "5"),
    ("benchmarks.serve", "prefill", "--shape", "m", "--context", "2048", "--rounds", "3"),
    ("benchmarks.serve", "prefix", "--shape", "s", "--context", "1024"),
    ("benchmarks.serve_http", "smollm2-135m", "--tokens", "96"),
    ("benchmarks.slow_clients",),
    ("benchmarks.mla_forms",),
    ("benchmarks.native_attention",),
    ("benchmarks.quantize",),
    ("benchmarks.cache_loss",),
    ("benchmarks.drafting",),
    ("benchmarks.engine_overhead",),
    ("benchmarks.native_products",),
    ("benchmarks.grammar",),
    ("benchmarks.load",),
    ("benchmarks.convert",),
    ("benchmarks.tasks",),
    ("benchmarks.rl",),
    ("benchmarks.rl", "--prompt", "1024"),
)


def main() -> None:
    for module, *arguments in RUNS:
        if module == "benchmarks.llama_texts" and not find_spec("llama_cpp"):
            continue
        print(f"== {module} {' '.join(arguments)}", flush=True)
        subprocess.run([sys.executable, "-m", module, *arguments, *sys.argv[1:]], check=True)


if __name__ == "__main__":
    main()
