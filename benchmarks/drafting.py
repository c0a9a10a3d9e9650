"""Drafting: how often drafts are right, and tokens per second with and without them, one engine each.

Prompts are prefixes of a run's held-out documents, equally many of each source. ``same`` is the share of answers
that equal those without drafts, token for token: less than all where two tokens are equally likely to rounding.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import peers, timing
from fathom.engine.engine import Engine
from fathom.inference.language_model import LanguageModel
from fathom.spec import EngineSpec, SamplingParams


def prompts_of(model: LanguageModel, run: Path, each: int, tokens: int) -> dict[str, list[list[int]]]:
    """Read the first ``tokens`` tokens of the first long enough documents of every source."""
    found: dict[str, list[list[int]]] = {}
    for path in sorted((run / "corpus" / "held_out").glob("*.jsonl")):
        texts = (json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines())
        ids = (model.tokenizer.encode(text)[:tokens] for text in texts)
        found[path.stem] = [prompt for prompt in ids if len(prompt) == tokens][:each]
    return {name: prompts for name, prompts in found.items() if prompts}


@dataclass
class Backend:
    """One engine; ``run`` answers all prompts, ``batch`` at a time."""

    engine: Engine
    prompts: Sequence[Sequence[int]]
    params: Sequence[SamplingParams]
    answers: list[tuple[int, ...]] = field(default_factory=list)

    def run(self) -> None:
        self.answers = [each.token_ids for each in self.engine.sample(self.prompts, self.params)]


def measure(model: LanguageModel, prompts: dict[str, list[list[int]]], a: argparse.Namespace) -> dict[str, object]:
    flat = [prompt for group in prompts.values() for prompt in group]
    params = [
        SamplingParams(max_tokens=a.max_tokens, temperature=a.temperature, seed=seed, ignore_eos=True)
        for seed in range(len(flat))
    ]
    cache_tokens = (a.prompt_tokens + a.max_tokens + 32) * a.batch
    contestants: dict[str, Backend] = {}
    for kind, count in [("none", 1), *((kind, count) for kind in ("mtp", "ngram") for count in a.draft_tokens)]:
        if kind == "mtp" and not len(model.model.mtp):
            continue
        spec = EngineSpec(
            max_batch=a.batch, cache_tokens=cache_tokens, prefix_cache=False, drafting=kind, draft_tokens=count
        )
        name = kind if kind == "none" else f"{kind} {count}"
        contestants[name] = Backend(Engine(model.model, spec=spec), flat, params)
    seconds = timing.interleave({name: one.run for name, one in contestants.items()}, rounds=a.rounds)
    plain = contestants["none"].answers
    same = {name: [x == y for x, y in zip(one.answers, plain, strict=True)] for name, one in contestants.items()}
    return {
        "model": a.model.name,
        "prompts": {name: len(group) for name, group in prompts.items()},
        "batch": a.batch,
        "prompt_tokens": a.prompt_tokens,
        "max_tokens": a.max_tokens,
        "temperature": a.temperature,
        "acceptance": {name: round(one.engine.stats.acceptance, 4) for name, one in contestants.items()},
        "tokens_per_step": {
            name: round(one.engine.stats.generated_tokens / one.engine.stats.steps, 3)
            for name, one in contestants.items()
        },
        "acceptance_of_mtp_by_source": by_source(model, prompts, a),
        "same": {name: sum(each) / len(each) for name, each in same.items()},
    } | timing.summary(seconds, units=len(flat) * a.max_tokens, peer="none")


def by_source(model: LanguageModel, prompts: dict[str, list[list[int]]], a: argparse.Namespace) -> dict[str, float]:
    """Return how often the module's one draft is right, source by source."""
    if not len(model.model.mtp):
        return {}
    found = {}
    for name, group in prompts.items():
        engine = Engine(model.model, spec=EngineSpec(drafting="mtp", prefix_cache=False))
        engine.sample(
            group, SamplingParams(max_tokens=a.max_tokens, temperature=a.temperature, seed=0, ignore_eos=True)
        )
        found[name] = round(engine.stats.acceptance, 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("runs/v3-tiny"), help="a run with its held-out texts")
    parser.add_argument("--each", type=int, default=4, help="prompts of each source")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--draft-tokens", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    a = parser.parse_args()
    model = LanguageModel.open(a.model, device="cpu", weights="plain")
    prompts = prompts_of(model, a.model, a.each, a.prompt_tokens)
    name = f"drafting-{a.model.name}-batch{a.batch}-temperature{a.temperature:g}"
    peers.write(name, measure(model, prompts, a), a.out)


if __name__ == "__main__":
    main()
