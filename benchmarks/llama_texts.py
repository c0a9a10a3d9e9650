"""Greedy texts of SmolLM2's Q4_1 file: ours against llama.cpp's over the same prompts; needs llama-cpp-python.

Prompts are pieces of a text that neither saw. Where two texts part, ``margin`` says by how many nats each side
preferred its token to the next best there: a near tie explains the difference, a wide margin on both sides does not.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import backends, peers
from benchmarks.llama import LlamaCpp
from benchmarks.quantize import HELD_OUT, text
from fathom.cli.options import cache_directory
from fathom.inference.catalog import catalog, fetch_named
from fathom.inference.language_model import LanguageModel
from fathom.kernels.native import library
from fathom.spec import SamplingParams
from fathom.spec.sampling import Completion


def margin(logits: np.ndarray[Any, np.dtype[np.float32]]) -> float:
    """Return by how much the best of logits exceeds the next best."""
    second, best = np.partition(logits, -2)[-2:]
    return float(best - second)


def compare(ours: Completion, theirs: list[int], peer: LlamaCpp, prompt: list[int]) -> dict[str, Any]:
    """Say whether two texts are equal, and else where and how they part."""
    parts = next((i for i, (a, b) in enumerate(zip(ours.token_ids, theirs, strict=True)) if a != b), None)
    if parts is None:
        return {"equal": True}
    peer.greedy(prompt + theirs[:parts], 1)
    logprobs = [logprob for _, logprob in ours.details[parts].top]
    return {
        "equal": False,
        "at": parts,
        "margin_fathom": round(logprobs[0] - logprobs[1], 4),
        "margin_llama_cpp": round(margin(peer.logits()), 4),
    }


def measure(a: argparse.Namespace) -> dict[str, Any]:
    path = fetch_named(catalog()["smollm2-135m"], cache_directory())
    model = LanguageModel.open(path, device="cpu")
    ids = model.tokenizer.encode(text(a.text, a.documents))
    prompts = [list(ids[at : at + a.context]) for at in range(0, a.prompts * a.context, a.context)]
    if len(prompts[-1]) < a.context:
        raise SystemExit(f"{a.text} has too few tokens: {len(ids)} of {a.prompts * a.context}")
    params = SamplingParams(max_tokens=a.tokens, temperature=0.0, ignore_eos=True, logprobs=2)
    ours = backends.engine_for(model.model, prompts[:8], a.tokens).sample(prompts, params)
    peer = LlamaCpp(path, sequences=1, context=a.context + a.tokens + 8, threads=a.threads)
    found = []
    for prompt, answer in zip(prompts, ours, strict=True):
        found.append(compare(answer, peer.greedy(prompt, a.tokens), peer, prompt))
    peer.close()
    widest = max((min(f["margin_fathom"], f["margin_llama_cpp"]) for f in found if not f["equal"]), default=math.nan)
    return {
        "file": path.name,
        "isa": library.current_isa(),
        "prompts": a.prompts,
        "prompt_tokens": a.context,
        "tokens": a.tokens,
        "equal": sum(f["equal"] for f in found),
        "widest_margin_of_a_difference": widest,
        "differences": [{"prompt": i} | f for i, f in enumerate(found) if not f["equal"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=HELD_OUT, help="A folder of .jsonl files.")
    parser.add_argument("--documents", type=int, default=16, help="Of each file.")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--context", type=int, default=48, help="Tokens of a prompt.")
    parser.add_argument("--tokens", type=int, default=32, help="Drawn after each.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    a = parser.parse_args()
    peers.write("llama-texts-smollm2-135m", {"text": str(a.text)} | measure(a), a.out)


if __name__ == "__main__":
    main()
