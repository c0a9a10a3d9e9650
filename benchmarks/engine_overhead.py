"""What a step of the engine costs outside the model's forward pass, in milliseconds, by batch and way of sampling.

Hidden states and logits are constants, so that what is timed is scheduling, drawing and the outputs. ``parts`` are
timed in steps of their own. ``--clock cpu`` counts the engine's thread alone, on a machine that others use too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks import backends, peers, timing
from fathom.engine.constraint import TokenConstraint
from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.families import preset
from fathom.model import Decoder, build
from fathom.model.cache import SequenceChunk
from fathom.model.native import NativeModel, StepOutput
from fathom.spec import EngineSpec, SamplingParams

CONTEXT = 100_000
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "greedy, stop tokens": {"temperature": 0.0, "stop_token_ids": (1, 2, 3)},
    "greedy, logprobs 5": {"temperature": 0.0, "logprobs": 5},
    "greedy, constraint": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top_p": {"temperature": 0.8, "top_p": 0.95},
    "top_k, top_p": {"temperature": 0.8, "top_k": 40, "top_p": 0.95},
    "penalties": {"temperature": 0.8, "presence_penalty": 0.1, "repetition_penalty": 1.1},
}


class EvenTokens:
    """A constraint that forbids every second token."""

    finished = False

    def fill_bitmask(self, bitmask_Z: Tensor) -> bool:
        bitmask_Z.fill_(0x55555555)
        return True

    def accept(self, token_id: int) -> None:
        pass

    def copy(self) -> TokenConstraint:
        return self


def model_of(vocab: int) -> Decoder:
    """Build one layer, which is never run."""
    spec = preset("bench-t")
    return build(replace(spec, num_hidden_layers=1, vocab_size=vocab, max_position_embeddings=CONTEXT), seed=0)


def engine_of(model: Decoder, batch: int, prompt: int) -> Engine:
    """Make an engine whose passes return the same hidden states and logits at every step."""
    engine = Engine(model, spec=EngineSpec(max_batch=batch, step_tokens=512, cache_tokens=batch * 4 * prompt))
    generator = torch.Generator().manual_seed(0)
    logits_BV = torch.randn(batch, model.spec.vocab_size, generator=generator) * 3
    hidden_ND = torch.randn(512, model.spec.hidden_size, generator=generator)
    forward: Any = engine._runner.passes(None)
    native: Any = engine.native
    if isinstance(native, NativeModel):
        native._library = SimpleNamespace(
            fathom_step=lambda *given: 0
        )  # its arguments are made, and nothing is computed
    prepare = forward.run if isinstance(native, NativeModel) else lambda *given: None

    def run(
        tokens: Sequence[int], chunks: Sequence[SequenceChunk], rows: Sequence[int], features_ND: None
    ) -> StepOutput:
        prepare(tokens, chunks, rows, features_ND)
        return StepOutput(hidden_ND[: len(tokens)], logits_BV[: len(rows)], None)

    forward.run = run
    return engine


def start(engine: Engine, way: str, batch: int, prompt: int) -> None:
    """Submit a batch of requests and read their prompts."""
    drawn: set[int] = set()
    for seed, tokens in enumerate(backends.prompts_for(engine.model.spec.vocab_size, batch, prompt)):
        constraint = EvenTokens() if "constraint" in way else None
        params = SamplingParams(max_tokens=prompt * 2, seed=seed, ignore_eos=True, **WAYS[way])
        engine.submit(Request(prompt=tuple(tokens), params=params, constraint=constraint))
    while len(drawn) < batch:
        drawn |= {output.request_id for output in engine.step() if output.tokens}


def stepping(engine: Engine, way: str, batch: int, prompt: int, steps: int) -> timing.Backend:
    """Run ``steps`` steps, in which every request draws."""

    def run() -> None:
        for _ in range(steps):
            if len(engine.step()) != batch:
                raise RuntimeError("a step drew for only some of the requests")

    def prepare() -> None:
        for request in tuple(engine._states):
            engine.cancel(request)
        start(engine, way, batch, prompt)

    return timing.Backend(run, prepare)


class Parts:
    """Seconds spent in some calls."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.clock = clock

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*positional: Any, **named: Any) -> Any:
            begun = self.clock()
            try:
                return call(*positional, **named)
            finally:
                self.seconds[name] += self.clock() - begun

        return timed


def parts_of(engine: Engine, run: Callable[[], None], steps: int, clock: Callable[[], float]) -> dict[str, float]:
    """Return milliseconds a step by part; drawing is inside the runner."""
    parts, runner = Parts(clock), engine._runner
    changed: list[tuple[Any, str, str]] = [
        (engine.scheduler, "schedule", "schedule"),
        (runner, "run", "run"),
        (runner, "_batch_entries", "run: entries"),
        (runner, "_run_passes", "run: pass"),
        (runner, "_find_nonfinite", "run: finite"),
        (runner, "_sample", "run: draw"),
        (engine, "_process_output", "outputs"),
    ]
    for owner, name, label in changed:
        setattr(owner, name, parts.timed(label, getattr(owner, name)))
    try:
        run()
    finally:
        for owner, name, _ in changed:
            delattr(owner, name)
    return {name: round(seconds / steps * 1e3, 4) for name, seconds in sorted(parts.seconds.items())}


def measure(a: argparse.Namespace) -> dict[str, object]:
    model, found = model_of(a.vocab), {}
    for batch in a.batches:
        steps = max(a.steps // batch, 4)
        engines = {way: engine_of(model, batch, a.prompt) for way in a.ways}
        named = {way: stepping(engine, way, batch, a.prompt, steps) for way, engine in engines.items()}
        seconds = timing.interleave(named, rounds=a.rounds, clock=CLOCKS[a.clock])
        found[f"batch {batch}"] = {
            way: {
                "ms_per_step": round(statistics.median(times) / steps * 1e3, 4),
                "parts": parts_of(engines[way], named[way].run, steps, CLOCKS[a.clock]),
            }
            for way, times in seconds.items()
        }
    return {"vocabulary": a.vocab, "prompt": a.prompt, "clock": a.clock, "steps": found}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--steps", type=int, default=128, help="steps of a round at batch 1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    a = parser.parse_args(arguments)
    peers.write("engine-overhead", measure(a), a.out)


if __name__ == "__main__":
    main()
