"""Greedy texts of SmolLM2's Q4_1 file: ours against llama.cpp's over the same prompts; needs llama-cpp-python.

Both round activations to 8 bits, and sum in different orders; what is rounded otherwise in one layer is noise in the
next. ``logit_noise`` says how far the logits after the prompts are from those with float32 activations, and from each
other: root mean square, each row's mean taken off. Where two texts part, ``margin`` says by how many nats each
side preferred its token to the next best there: a difference is explained where it is of the size of that noise.
Prompts are pieces of a text that neither saw.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import backends, peers
from benchmarks.llama import LlamaCpp
from benchmarks.quantize import HELD_OUT, text
from fathom.cli.options import cache_directory
from fathom.inference.catalog import catalog, fetch_named
from fathom.inference.language_model import LanguageModel
from fathom.kernels.native import library
from fathom.model.quantize import set_activations
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


def logits_after(model: LanguageModel, prompts: list[list[int]]) -> Tensor:
    """Return our logits after each prompt (prompts, vocabulary), each row's mean taken off."""
    with torch.inference_mode():
        hidden = [model.model(torch.tensor([prompt])).hidden_BTD[0, -1] for prompt in prompts]
        return centered(model.model.logits(torch.stack(hidden)))


def centered(logits_PV: Tensor) -> Tensor:
    return logits_PV - logits_PV.mean(1, keepdim=True)


def noise(a_PV: Tensor, b_PV: Tensor) -> float:
    return round(float((a_PV - b_PV).square().mean().sqrt()), 4)


def measure(a: argparse.Namespace) -> dict[str, Any]:
    path = fetch_named(catalog()["smollm2-135m"], cache_directory())
    model = LanguageModel.open(path, device="cpu")
    ids = model.tokenizer.encode(text(a.text, a.documents))
    prompts = [list(ids[at : at + a.context]) for at in range(0, a.prompts * a.context, a.context)]
    if len(prompts[-1]) < a.context:
        raise SystemExit(f"{a.text} has too few tokens: {len(ids)} of {a.prompts * a.context}")
    params = SamplingParams(max_tokens=a.tokens, temperature=0.0, ignore_eos=True, logprobs=2)
    ours = backends.engine_for(model.model, prompts[:8], a.tokens).sample(prompts, params)
    logits = {"fathom": logits_after(model, prompts)}
    set_activations(model.model, rounded=False)
    exact = backends.engine_for(model.model, prompts[:8], a.tokens).sample(prompts, params)
    logits["exact"] = logits_after(model, prompts)
    peer = LlamaCpp(path, sequences=1, context=a.context + a.tokens + 8, threads=a.threads)
    found, last, texts = [], [], []
    for prompt, answer in zip(prompts, ours, strict=True):
        peer.greedy(prompt, 1)
        last.append(torch.from_numpy(peer.logits().copy()))
        texts.append(peer.greedy(prompt, a.tokens))
        found.append(compare(answer, texts[-1], peer, prompt))
    peer.close()
    logits["llama.cpp"] = centered(torch.stack(last))
    sides = {"fathom": [list(each.token_ids) for each in ours], "llama.cpp": texts}
    sides["exact"] = [list(each.token_ids) for each in exact]
    pairs = (("fathom", "llama.cpp"), ("fathom", "exact"), ("llama.cpp", "exact"))
    widest = max((min(f["margin_fathom"], f["margin_llama_cpp"]) for f in found if not f["equal"]), default=math.nan)
    return {
        "file": path.name,
        "isa": library.current_isa(),
        "prompts": a.prompts,
        "prompt_tokens": a.context,
        "tokens": a.tokens,
        "equal": {
            f"{one}, {two}": sum(x == y for x, y in zip(sides[one], sides[two], strict=True)) for one, two in pairs
        },
        "logit_noise": {f"{one}, {two}": noise(logits[one], logits[two]) for one, two in pairs},
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
