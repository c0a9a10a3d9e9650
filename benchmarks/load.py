"""SmolLM2's GGUF file: seconds from a fresh process to its first token, by each library that reads the same file.

Fathom and llama.cpp (where llama-cpp-python is installed) run the weights as the file quantized them, transformers
makes float32 of them. Each round starts one process for each contestant. ``seconds`` are what a user waits, from
starting Python to the token; ``without_imports`` begin when the process has imported what its script names at the top.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from benchmarks import peers
from fathom.cli.options import cache_directory
from fathom.inference.catalog import catalog, fetch_named

QUESTION = "The capital of France is"
FATHOM = """
from fathom.inference.language_model import LanguageModel
from fathom.spec import SamplingParams
imported = time.perf_counter()
model = LanguageModel.open(path, device="cpu")
ids = model.tokenizer.encode(question)
token = next(model.stream(ids, SamplingParams(max_tokens=1, temperature=0.0)))
"""
TRANSFORMERS = """
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
logging.set_verbosity_error()
logging.disable_progress_bar()
imported = time.perf_counter()
folder, name = Path(path).parent, Path(path).name
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
ids = tokenizer(question, return_tensors="pt")
with torch.inference_mode():
    token = int(model.generate(**ids, max_new_tokens=1, do_sample=False)[0, -1])
"""
LLAMA_CPP = """
from llama_cpp import Llama
imported = time.perf_counter()
model = Llama(path, n_ctx=2048, verbose=False)
token = next(model.generate(model.tokenize(question.encode(), add_bos=False), temp=0.0))
"""
PARTS = ("seconds", "imports", "without_imports")
FRAME = """
import sys, time
started, path, question = time.perf_counter(), sys.argv[1], sys.argv[2]
{body}
print(token, imported - started, time.perf_counter() - imported, flush=True)
"""


def once(body: str, path: Path) -> dict[str, float]:
    """Run one process; return its first token and its seconds."""
    started = time.perf_counter()
    command = [sys.executable, "-c", FRAME.format(body=body), str(path), QUESTION]
    # as installed packages run: with their bytecode, which the first round writes where it is missing
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
        errors = process.stderr.read()
    if process.returncode:
        raise SystemExit(errors)
    token, imports, rest = line.split()
    return {"token": int(token), "seconds": seconds, "imports": float(imports), "without_imports": float(rest)}


def times(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, float]:
    """Return how many times faster ours is, by part: medians over the rounds."""
    pairs = list(zip(ours, theirs, strict=True))
    return {part: round(statistics.median(t[part] / o[part] for o, t in pairs), 3) for part in PARTS}


def measure(path: Path, count: int) -> dict[str, object]:
    contestants = {"fathom": FATHOM, "transformers": TRANSFORMERS}
    if find_spec("llama_cpp"):
        contestants["llama.cpp"] = LLAMA_CPP
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for turn in range(count + 1):
        for name, body in contestants.items():
            result = once(body, path)
            if turn:  # the first round warms the disk's cache
                runs[name].append(result)
    tokens = {result["token"] for results in runs.values() for result in results}
    assert len(tokens) == 1, f"the contestants drew different tokens: {tokens}"
    return {
        "file": path.name,
        "rounds": count,
        "median": {
            name: {part: round(statistics.median(r[part] for r in results), 3) for part in PARTS}
            for name, results in runs.items()
        },
        "times": {peer: times(runs["fathom"], results) for peer, results in runs.items() if peer != "fathom"},
        "runs": {
            name: [{part: round(r[part], 3) for part in PARTS} for r in results] for name, results in runs.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", choices=list(catalog()))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    a = parser.parse_args()
    path = fetch_named(catalog()[a.model], cache_directory())
    peers.write(f"load-{a.model}", measure(path, a.rounds), a.out)


if __name__ == "__main__":
    main()
