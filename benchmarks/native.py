"""The native step against transformers and, where llama-cpp-python is installed, llama.cpp: the same GGUF files.

    decode   tokens/s through ``Engine.step``, drawing included, after the prompts are read
    prompt   tokens/s of a prompt, up to its first token

Shapes s and m are ``bench-s`` and ``bench-m`` with compressed queries, which llama.cpp's reading of DeepSeek-V2 needs;
``smollm2`` is the catalog's Q4_1 file. Contestants alternate round by round; transformers computes in float32, from the
same weights. ``read_bandwidth`` is measured just before and after the rounds; ``share_of_bandwidth`` is what a token's
weights would take of it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import PreTrainedModel

from benchmarks import backends, peers, timing
from benchmarks.llama import LlamaCpp
from benchmarks.timing import Backend
from fathom.checkpoint.gguf import write_gguf
from fathom.checkpoint.weights import StateWeights
from fathom.cli.options import cache_directory
from fathom.engine.engine import Engine
from fathom.inference.catalog import catalog, fetch_named
from fathom.inference.language_model import LanguageModel
from fathom.kernels.native import library
from fathom.model import Decoder
from fathom.model.quantized import QuantizedModule
from fathom.spec import SamplingParams

Q_LORA = 256
KINDS = {"float32": "F32", "int8": "Q8_0", "int4": "Q4_0"}
BANDWIDTH_BYTES = 1 << 29


@contextmanager
def files(shape: str, forms: Sequence[str], positions: int) -> Iterator[dict[str, Path]]:
    """Yield a GGUF file of each form."""
    if shape == "smollm2":
        yield {"file": fetch_named(catalog()["smollm2-135m"], cache_directory())}
        return
    with tempfile.TemporaryDirectory() as folder:
        model = peers.fathom_model(shape, q_lora=Q_LORA, positions=positions)
        weights = StateWeights(model.spec, model.state_dict())
        yield {
            form: write_gguf(Path(folder) / f"{form}.gguf", weights, kind=KINDS[form])  # type: ignore[arg-type]
            for form in forms
        }


def open_ours(path: Path) -> Decoder:
    """Open a file in the form that Fathom runs it in by default."""
    return LanguageModel.open(path, device="cpu").model.eval()


def positions_of(a: argparse.Namespace) -> int:
    """Return how many tokens a sequence may take, what engines keep free included."""
    return int(a.context + a.steps + 128)


def transformers_model(a: argparse.Namespace) -> PreTrainedModel:
    """Open the same weights with transformers."""
    q_lora = Q_LORA if a.shape != "smollm2" else None
    return peers.transformers_model(a.shape, q_lora=q_lora, positions=positions_of(a)).eval()


def bytes_per_token(model: Decoder) -> int:
    """Return the bytes of weights that a token's step reads: all but the embedding, and of experts the chosen ones."""
    moe, total = model.spec.moe, 0
    for name, module in model.named_modules():
        weights = list(module.quantized()) if isinstance(module, QuantizedModule) else []
        nbytes = sum(each.nbytes for each in (*weights, *module.parameters(recurse=False)))
        if name == "embed_tokens" and not model.spec.tie_word_embeddings:
            continue
        share = moe.num_experts_per_tok / moe.n_routed_experts if moe and name.endswith(".experts") else 1
        total += round(nbytes * share)
    return total


def read_bandwidth() -> float:
    """Return bytes a second that this machine's threads read, from one large tensor."""
    numbers = torch.ones(BANDWIDTH_BYTES // 4)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        numbers.sum()
        times.append(time.perf_counter() - started)
    return BANDWIDTH_BYTES / statistics.median(times)


def decode(a: argparse.Namespace, opened: ExitStack, paths: dict[str, Path]) -> dict[str, object]:
    named: dict[str, Backend] = {}
    read: dict[str, int] = {}
    for form, path in paths.items():
        model = open_ours(path)
        prompts = backends.prompts_for(model.spec.vocab_size, a.batch, a.context)
        read[f"fathom {form}"] = bytes_per_token(model)
        engine = backends.engine_for(model, prompts, a.steps)
        named[f"fathom {form}"] = backends.fathom(engine, prompts, a.steps)
        for cache in a.caches:
            size = a.batch * (a.context + a.steps + 64)
            peer = LlamaCpp(path, sequences=a.batch, context=size, threads=a.threads, cache=cache)
            opened.callback(peer.close)
            named[f"llama.cpp {form}, {cache} cache"] = peer.decoding(prompts, a.steps)
    if not a.no_transformers:
        theirs = transformers_model(a)
        named["transformers"] = backends.transformers(theirs, prompts, a.steps)
    return rounds(a, named, a.batch * a.steps, read if a.batch == 1 else {})


def prompt(a: argparse.Namespace, opened: ExitStack, paths: dict[str, Path]) -> dict[str, object]:
    named: dict[str, Backend] = {}
    for form, path in paths.items():
        model = open_ours(path)
        (tokens,) = backends.prompts_for(model.spec.vocab_size, 1, a.context)
        engine = backends.engine_for(model, [tokens], 1, prefix_cache=False)
        named[f"fathom {form}"] = Backend(first_token(engine, tokens))
        for cache in a.caches:
            peer = LlamaCpp(path, sequences=1, context=a.context + 64, threads=a.threads, cache=cache)
            opened.callback(peer.close)
            named[f"llama.cpp {form}, {cache} cache"] = peer.reading(tokens)
    if not a.no_transformers:
        theirs = transformers_model(a)
        named["transformers"] = Backend(lambda: backends.generate(theirs, [tokens], 1))
    return rounds(a, named, a.context, {})


def first_token(engine: Engine, tokens: Sequence[int]) -> Callable[[], None]:
    """Return what reads a prompt and draws one token."""

    def run() -> None:
        engine.sample([tokens], SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True))

    return run


def rounds(a: argparse.Namespace, named: dict[str, Backend], units: int, read: dict[str, int]) -> dict[str, object]:
    """Time the contestants; ratios are against llama.cpp's better cache over the same file."""
    before = read_bandwidth()
    seconds = timing.interleave(named, rounds=a.rounds)
    bandwidth = statistics.mean([before, read_bandwidth()])
    speed = {name: units / statistics.median(times) for name, times in seconds.items()}
    found = {form: [n for n in named if n.startswith(f"llama.cpp {form},")] for form in a.forms}
    best = {form: max(names, key=speed.__getitem__) for form, names in found.items() if names}
    return {
        "read_bandwidth": round(bandwidth),
        "per_second": {name: round(value, 2) for name, value in speed.items()},
        "times_llama_cpp": {form: ratio(seconds, f"fathom {form}", name) for form, name in best.items()},
        "times_transformers": {form: ratio(seconds, f"fathom {form}", "transformers") for form in a.forms}
        if "transformers" in seconds
        else {},
        "share_of_bandwidth": {name: round(speed[name] * read[name] / bandwidth, 3) for name in read},
        "seconds": {name: [round(t, 4) for t in times] for name, times in seconds.items()},
    }


def ratio(seconds: dict[str, list[float]], ours: str, theirs: str) -> float:
    """Return how many times faster ours is: the median over the rounds."""
    return round(statistics.median(t / o for o, t in zip(seconds[ours], seconds[theirs], strict=True)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["decode", "prompt"], default="decode")
    parser.add_argument("--shape", default="s", choices=["s", "m", "smollm2"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--forms", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--caches", nargs="+", choices=["f32", "f16"], default=["f32", "f16"], help="of llama.cpp")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    a = parser.parse_args()
    if a.shape == "smollm2":
        a.forms = ["file"]
    if not find_spec("llama_cpp"):
        print("llama-cpp-python is not installed: without llama.cpp")
        a.caches = []
    with files(a.shape, a.forms, positions_of(a)) as paths, ExitStack() as opened:
        result = {"decode": decode, "prompt": prompt}[a.what](a, opened, paths)
    head = {"shape": a.shape, "batch": a.batch, "context": a.context, "steps": a.steps, "isa": library.current_isa()}
    batch = f"-batch{a.batch}" if a.what == "decode" else ""
    peers.write(f"native-{a.what}-{a.shape}{batch}-context{a.context}", head | result, a.out)


if __name__ == "__main__":
    main()
