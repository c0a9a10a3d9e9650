"""Constrained output: what llguidance (as Fathom uses it) and xgrammar take to compile a form and to allow each token.

Every contestant follows the same texts, token by token: ``mask`` is asking which tokens may come next, from a compiled
form that no text has followed yet; ``accept`` is telling it the token. One that is not installed is left out.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from fathom.chat.grammar import GrammarCompiler, TokenBytes
from fathom.checkpoint.gguf.source import GGUFFile
from fathom.cli.options import cache_directory
from fathom.inference.catalog import catalog, fetch_named
from fathom.tokenizer import Tokenizer

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60},
        "kind": {"enum": ["author", "painter", "composer"]},
        "born": {"type": "integer", "minimum": 1, "maximum": 2100},
        "works": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"title": {"type": "string"}, "year": {"type": "integer"}, "known": {"type": "boolean"}},
                "required": ["title", "year"],
                "additionalProperties": False,
            },
        },
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["name", "kind", "born", "works"],
    "additionalProperties": False,
}
DOCUMENT = {
    "name": "曹雪芹 (Cao Xueqin)",
    "kind": "author",
    "born": 1715,
    "works": [
        {"title": "Dream of the Red Chamber", "year": 1791, "known": True},
        {"title": "废艺斋集稿", "year": 1760},
    ],
    "note": 'Left unfinished at 80 chapters, he wrote: "all for the paper full of idle words".',
}
PATTERN = r"[A-Z][a-z]{2,20} [0-9]{1,2}, [0-9]{4}( at [0-9]{2}:[0-9]{2})?"


@dataclass(frozen=True)
class GrammarCase:
    """What to compile, and a text that satisfies it."""

    kind: str
    content: Any
    text: str


GRAMMAR_CASES: Mapping[str, GrammarCase] = {
    "schema": GrammarCase("schema", PERSON, json.dumps(DOCUMENT, ensure_ascii=False)),
    "any object": GrammarCase("object", None, json.dumps(DOCUMENT, ensure_ascii=False)),
    "regex": GrammarCase("regex", PATTERN, "February 29, 1716 at 07:45"),
}


@dataclass(frozen=True)
class Matcher:
    """One text's way through a form."""

    fill: Callable[[Tensor], object]
    accept: Callable[[int], object]


Compiled = Callable[[], Matcher]


class LLGuidance:
    """What Fathom serves with, its own checks included."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._compiler = GrammarCompiler(tokenizer)

    def compile(self, form: GrammarCase) -> Compiled:
        self._compiler._compiled.clear()
        make = {
            "schema": lambda: self._compiler.json_schema(form.content),
            "object": self._compiler.json_object,
            "regex": lambda: self._compiler.regex(form.content),
        }[form.kind]
        make()

        def begin() -> Matcher:
            constraint = make()
            return Matcher(constraint.fill_bitmask, constraint.accept)

        return begin


class XGrammar:
    """Compiling on one thread and without its cache, as one request would find it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        import xgrammar

        self._xgrammar = xgrammar
        tokens = TokenBytes(tokenizer, [tokenizer.eos_id]).tokens
        info = xgrammar.TokenizerInfo(tokens, vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[tokenizer.eos_id])
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compile(self, form: GrammarCase) -> Compiled:
        compiled = {
            "schema": lambda: self._compiler.compile_json_schema(form.content),
            "object": lambda: self._compiler.compile_json_schema({"type": "object"}, strict_mode=False),
            "regex": lambda: self._compiler.compile_regex(form.content),
        }[form.kind]()

        def begin() -> Matcher:
            matcher = self._xgrammar.GrammarMatcher(compiled)

            def accept(token: int) -> None:
                assert matcher.accept_token(token)

            return Matcher(lambda bitmask_W: matcher.fill_next_token_bitmask(bitmask_W[None]), accept)

        return begin


CONTESTANTS = {"llguidance": LLGuidance, "xgrammar": XGrammar}


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result


def follow(begin: Compiled, tokens: list[int], vocab: int) -> dict[str, list[float]]:
    """Return the seconds of every mask and of every token accepted, and those of making the follower."""
    start, follower = timed(begin)
    seconds: dict[str, list[float]] = {"start": [start], "mask": [], "accept": []}
    bitmask_W = torch.empty((vocab + 31) // 32, dtype=torch.int32)
    for token in tokens:
        seconds["mask"].append(timed(partial(follower.fill, bitmask_W))[0])
        seconds["accept"].append(timed(partial(follower.accept, token))[0])
    return seconds


def figures(values: list[float]) -> dict[str, float]:
    micro = sorted(1e6 * value for value in values)
    return {
        "median_us": round(statistics.median(micro), 1),
        "p99_us": round(micro[min(len(micro) - 1, int(0.99 * len(micro)))], 1),
        "max_us": round(micro[-1], 1),
    }


def measure(tokenizer: Tokenizer, names: list[str], count: int) -> dict[str, object]:
    size = len(TokenBytes(tokenizer, [tokenizer.eos_id]).tokens)
    built = {name: timed(partial(CONTESTANTS[name], tokenizer)) for name in names}
    result: dict[str, object] = {
        "vocabulary": size,
        "tokenizer_ms": {name: round(1e3 * seconds, 1) for name, (seconds, _) in built.items()},
    }
    for title, form in GRAMMAR_CASES.items():
        tokens = tokenizer.encode(form.text, continues=True)
        compiles: dict[str, list[float]] = {name: [] for name in names}
        parts: dict[str, dict[str, list[float]]] = {name: {"start": [], "mask": [], "accept": []} for name in names}
        for _ in range(count):
            for name, (_, contestant) in built.items():
                gc.collect()
                seconds, begin = timed(partial(contestant.compile, form))
                compiles[name].append(seconds)
                for part, values in follow(begin, tokens, size).items():
                    parts[name][part] += values
        result[title] = {"tokens": len(tokens)} | {
            name: {"compile_ms": round(1e3 * statistics.median(compiles[name]), 2)}
            | {part: figures(values) for part, values in parts[name].items()}
            for name in names
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", choices=list(catalog()))
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer's folder, measured instead of the model's")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    a = parser.parse_args()
    if a.tokenizer is None:
        tokenizer = GGUFFile.open(fetch_named(catalog()[a.model], cache_directory())).tokenizer()
        assert tokenizer is not None
    else:
        tokenizer = Tokenizer.load(a.tokenizer)
    names = [name for name in CONTESTANTS if importlib.util.find_spec(name) is not None]
    title = a.model if a.tokenizer is None else a.tokenizer.resolve().parent.name
    peers.write(f"grammar-{title}", {"rounds": a.rounds} | measure(tokenizer, names, a.rounds), a.out)


if __name__ == "__main__":
    main()
