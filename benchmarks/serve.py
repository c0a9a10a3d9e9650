"""The engine against transformers: the same weights, alternating rounds. ``benchmarks.native`` adds llama.cpp.

    decode   tokens/s after the prompts are read: transformers' loop inside ``generate``, and the bare products
    requests tokens/s of whole calls, prompts included: transformers' ``generate`` and its continuous batching
    prefill  seconds to the first token of a long prompt, and the memory it takes beyond the loaded model
    prefix   seconds to the first token with a cached prefix, against a prompt of which nothing was

Shapes s, m and l are ``bench-*`` of ``fathom models``; ``smollm2`` is the named model.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from benchmarks import backends, peers, timing
from benchmarks.timing import Backend
from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.model import Decoder
from fathom.spec import SamplingParams

WEIGHT_FORMATS = ("float32", "bfloat16", "int8", "int4", "int4-bfloat16")


def our_model(shape: str, form: str) -> Decoder:
    """Open or build a shape in one of the forms weights are kept in."""
    from fathom.model.quantize import quantize

    weights = form.split("-")[0]
    dtype = torch.bfloat16 if form.endswith("bfloat16") else torch.float32
    model = peers.fathom_model(shape, dtype=dtype)
    if weights in ("int8", "int4"):
        quantize(model, weights)  # type: ignore[arg-type]
    return model.eval()


def our_engine(shape: str, form: str, prompts: backends.Prompts, steps: int) -> Engine:
    """Make an engine over one form."""
    return backends.engine_for(our_model(shape, form), prompts, steps)


def decode(a: argparse.Namespace) -> dict[str, object]:
    theirs = peers.transformers_model(a.shape).eval()
    prompts = backends.prompts_for(theirs.config.vocab_size, a.batch, a.context)
    named: dict[str, Backend] = {"transformers": backends.transformers(theirs, prompts, a.steps)}
    for form in a.forms:
        engine = our_engine(a.shape, form, prompts, a.steps)
        named["fathom" if form == "float32" else f"fathom {form}"] = backends.fathom(engine, prompts, a.steps)
        if form == "float32" and a.batch == 1 and engine.model.spec.moe is not None:
            named["bare products"] = backends.matmuls_only(engine.model, a.steps)
    return timing.summary(timing.interleave(named, rounds=a.rounds), units=a.batch * a.steps)


def requests(a: argparse.Namespace) -> dict[str, object]:
    theirs = peers.transformers_model(a.shape).eval()
    prompts = backends.prompts_for(theirs.config.vocab_size, a.batch, a.context)
    params = SamplingParams(max_tokens=a.steps, temperature=0.0, ignore_eos=True)
    engine = backends.engine_for(our_model(a.shape, "float32"), prompts, a.steps, prefix_cache=False)
    named = {
        "transformers": Backend(lambda: backends.generate(theirs, prompts, a.steps)),
        "fathom": Backend(lambda: _sample(engine, prompts, params)),
    }
    continuous, why = backends.continuous(theirs, prompts, a.steps)
    if continuous is not None:
        named["transformers continuous batching"] = continuous
    result = timing.summary(timing.interleave(named, rounds=a.rounds), units=a.batch * a.steps)
    return result | ({"left_out": {"transformers continuous batching": why}} if why else {})


def _sample(engine: Engine, prompts: backends.Prompts, params: SamplingParams) -> None:
    engine.sample(prompts, params)


def prefill(a: argparse.Namespace) -> dict[str, object]:
    if a.alone:
        return {"peak_mib": _peak_of_one(a)}
    theirs = peers.transformers_model(a.shape).eval()
    prompts = backends.prompts_for(theirs.config.vocab_size, 1, a.context)
    engine = backends.engine_for(our_model(a.shape, "float32"), prompts, 1, prefix_cache=False)
    named = {"fathom": _first(engine, prompts), "transformers": lambda: backends.generate(theirs, prompts, 1)}
    result = timing.summary(timing.interleave(named, rounds=a.rounds), units=a.context)
    command = [sys.executable, "-m", "benchmarks.serve", "prefill", "--shape", a.shape, "--context", str(a.context)]
    peaks = {}
    for name in ("fathom", "transformers"):
        printed = subprocess.run([*command, "--alone", name], check=True, capture_output=True, text=True).stdout
        peaks[name] = json.loads(printed)["peak_mib"]
    return result | {"peak_mib_beyond_model": peaks}


def _first(engine: Engine, prompts: backends.Prompts) -> Callable[[], None]:
    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    return lambda: _sample(engine, prompts, params)


def _peak_of_one(a: argparse.Namespace) -> float:
    """Peak memory of this process's first call, beyond what the loaded model had taken."""
    ours = a.alone == "fathom"
    theirs: PreTrainedModel | None = None if ours else peers.transformers_model(a.shape).eval()
    model = our_model(a.shape, "float32") if ours else None
    vocab = theirs.config.vocab_size if theirs is not None else model.spec.vocab_size  # type: ignore[union-attr]
    short, long = (backends.prompts_for(vocab, 1, length) for length in (16, a.context))
    if model is not None:
        engine = backends.engine_for(model, long, 1, prefix_cache=False)
        _first(engine, short)()
        call = _first(engine, long)
    else:
        assert theirs is not None
        peer = theirs
        backends.generate(peer, short, 1)

        def call() -> None:
            backends.generate(peer, long, 1)

    Path("/proc/self/clear_refs").write_text("5")  # the peak so far was loading's
    before = _resident_mib()
    call()
    return round(_peak_mib() - before, 1)


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def prefix(a: argparse.Namespace) -> dict[str, object]:
    model = our_model(a.shape, "float32")
    (shared,) = backends.prompts_for(model.spec.vocab_size, 1, a.context)
    endings = backends.prompts_for(model.spec.vocab_size, 2 * a.rounds + 4, 16)
    cache_tokens = (a.rounds + 2) * (a.context + 128)  # holds every cold prompt, so that none evicts the shared one
    engine = backends.engine_for(model, [shared], 1, cache_tokens=cache_tokens)
    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for turn in range(a.rounds + 1):
        for name in seconds:
            salt = f"{turn}" if name == "cold" else "shared"
            request = Request(prompt=(*shared, *endings.pop()), params=params, salt=salt)
            start = time.perf_counter()
            engine.submit(request)
            while engine.has_work:
                engine.step()
            seconds[name].append(time.perf_counter() - start)
    kept = {name: times[1:] for name, times in seconds.items()}  # the first warm one was cold
    share = statistics.median(w / c for w, c in zip(kept["warm"], kept["cold"], strict=True))
    return {"seconds": kept, "warm_over_cold": round(share, 4)}


WORK = {"decode": decode, "requests": requests, "prefill": prefill, "prefix": prefix}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WORK)
    parser.add_argument("--shape", default="s", choices=["t", "s", "m", "l", "smollm2"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--forms", nargs="*", choices=WEIGHT_FORMATS, default=["float32"])
    parser.add_argument("--alone", choices=["fathom", "transformers"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    a = parser.parse_args()
    result = WORK[a.what](a)
    if a.alone:
        print(json.dumps(result))
        return
    head = {"shape": a.shape, "batch": a.batch, "context": a.context, "steps": a.steps}
    name = f"serve-{a.what}-{a.shape}-batch{a.batch}-context{a.context}"
    peers.write(name, head | result, a.out)


if __name__ == "__main__":
    main()
