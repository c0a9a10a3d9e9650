"""Run every benchmark at the documented settings and write JSON under benchmarks/out (or --out)."""

from __future__ import annotations

import subprocess
import sys

DECODE = ("benchmarks.serve", "decode", "--shape")
ALL_FORMS = ("float32", "bfloat16", "int8", "int4")
BATCH_FORMS = ("float32", "bfloat16", "int8", "int4", "int4-bfloat16")
RUNS = (
    ("benchmarks.cache_bytes",),
    ("benchmarks.train_step", "--shape", "t"),
    ("benchmarks.train_step", "--shape", "s"),
    (*DECODE, "s", "--forms", *ALL_FORMS),
    (*DECODE, "m", "--steps", "8", "--rounds", "5", "--forms", *ALL_FORMS),
    (*DECODE, "l", "--steps", "4", "--rounds", "3", "--forms", "float32", "int4"),
    (*DECODE, "smollm2", "--forms", *ALL_FORMS),
    (*DECODE, "s", "--batch", "16", "--forms", *BATCH_FORMS),
    (*DECODE, "m", "--batch", "16", "--steps", "8", "--rounds", "5", "--forms", *BATCH_FORMS),
    (*DECODE, "s", "--batch", "16", "--context", "2048", "--steps", "2", "--rounds", "5", "--forms", *BATCH_FORMS),
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
        print(f"== {module} {' '.join(arguments)}", flush=True)
        subprocess.run([sys.executable, "-m", module, *arguments, *sys.argv[1:]], check=True)


if __name__ == "__main__":
    main()
