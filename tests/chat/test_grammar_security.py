"""Grammars and schemas that are cheap to send and dear to compile or to follow."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from fathom.chat.grammar import GrammarCompiler, GrammarConstraint, GrammarLimits
from fathom.errors import DataError
from fathom.tokenizer import Tokenizer

MOST_SECONDS = 20.0
"""Of processor time; without the limits these take minutes."""
INTEGER = {"type": "integer"}
REFUSED_SCHEMAS: Mapping[str, dict[str, Any]] = {
    "a large multiple": INTEGER | {"multipleOf": 999_983},
    "a large fraction": {"type": "number", "multipleOf": 0.99983},
    "many multiples": {"properties": {f"p{index}": INTEGER | {"multipleOf": 997} for index in range(50)}},
    "multiples at once": {"allOf": [INTEGER | {"multipleOf": 991}, INTEGER | {"multipleOf": 997}]},
    "a multiple in a definition": {"$defs": {"a": INTEGER | {"multipleOf": 99_991}}, "$ref": "#/$defs/a"},
    "a multiple of many digits": INTEGER | {"multipleOf": 10**4000},
    "a bound of many digits": INTEGER | {"minimum": -(10**4000), "maximum": 10**4000},
    "itself": {"$ref": "#"},
    "a circle": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "thousands of optional properties": {"type": "object", "properties": {f"p{index}": {} for index in range(3500)}},
}
REFUSED_GRAMMARS: Mapping[str, str] = {
    "a schema within": 'start: %json {"type": "integer", "multipleOf": 999983}\n',
    "a schema within, escaped": 'start: %json {"type": "integer", "multipl\\u0065Of": 999983}\n',
    "a schema behind a comment": 'start: %json // {\n {"type": "integer", "multipleOf": 999983}\n',
    "optional parts": "start: " + "a? " * 5000 + '\na: "x"\n',
    "alternatives": "start: " + " | ".join(f'"c{index}"' for index in range(4000)) + "\n",
}
AMBIGUOUS = "start: s\ns: s s s | s s | /[a-z ]/ | \n"


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer)


def seconds(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


@pytest.mark.parametrize("kind", REFUSED_SCHEMAS)
def test_schemas_that_take_too_much_to_compile_are_refused_at_once(compiler: GrammarCompiler, kind: str) -> None:
    def refused() -> None:
        with pytest.raises(DataError, match=r"^json_schema: .*; "):
            compiler.json_schema(REFUSED_SCHEMAS[kind])

    assert seconds(refused) < MOST_SECONDS


@pytest.mark.parametrize("kind", REFUSED_GRAMMARS)
def test_grammars_that_take_too_much_are_refused_before_generation(compiler: GrammarCompiler, kind: str) -> None:
    def refused() -> None:
        with pytest.raises(DataError, match=r"^grammar: .*; "):
            compiler.lark(REFUSED_GRAMMARS[kind])

    assert seconds(refused) < MOST_SECONDS


@pytest.mark.parametrize("step", [0.01, 0.25, 0.5, 5, 7, 12, 60, 100, 3600, 1_000_000, 997])
def test_multiples_that_people_ask_for_are_enforced(
    compiler: GrammarCompiler, tokenizer: Tokenizer, step: float
) -> None:
    constraint, ids = compiler.json_schema({"type": "number", "multipleOf": step, "minimum": 0, "maximum": 10**9}), []
    for token in tokenizer.encode(json.dumps(step * 3), continues=True):
        constraint.accept(token)
        ids.append(token)
    assert constraint.complete


def follow(constraint: GrammarConstraint, tokenizer: Tokenizer, tokens: int) -> None:
    """Draw tokens at random, without the end."""
    numbers, size = random.Random(0), (tokenizer.vocab_size + 31) // 32
    for _ in range(tokens):
        bitmask_W = torch.zeros(size, dtype=torch.int32)
        constraint.fill_bitmask(bitmask_W)
        found = np.unpackbits(bitmask_W.numpy().view(np.uint8), bitorder="little").nonzero()[0].tolist()
        constraint.accept(numbers.choice([each for each in found if each != tokenizer.eos_id]))


def test_an_ambiguous_grammar_ends_its_request_by_its_time_security(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    def followed() -> None:
        with pytest.raises(DataError, match=r"takes too long to follow.*; write it without ambiguity"):
            follow(compiler.lark(AMBIGUOUS), tokenizer, 400)

    assert seconds(followed) < MOST_SECONDS


def test_copies_share_the_time_of_their_request(tokenizer: Tokenizer) -> None:
    limits = GrammarLimits(seconds=1e-6, token_seconds=1e-9)
    first = GrammarCompiler(tokenizer, limits=limits).lark('start: ("a" | "b")*\n')
    other = first.copy()
    follow(first, tokenizer, 0)
    first.fill_bitmask(torch.zeros((tokenizer.vocab_size + 31) // 32, dtype=torch.int32))
    with pytest.raises(DataError, match="takes too long"):
        follow(other, tokenizer, 1)


def test_an_unambiguous_grammar_is_followed_for_long(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    follow(compiler.lark("start: /(a|b|c| )*/\n"), tokenizer, 2000)


def test_a_grammar_that_is_being_compiled_keeps_no_other_waiting(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiling, done, original = threading.Event(), threading.Event(), compiler._library.compile

    def compile_slowly(kind: str, text: str, limits: GrammarLimits) -> Any:
        if text == "slow":
            compiling.set()
            assert done.wait(60)
        return original(kind, text, limits)

    monkeypatch.setattr(compiler._library, "compile", compile_slowly)
    slow = threading.Thread(target=compiler.regex, args=("slow",))
    slow.start()
    try:
        assert compiling.wait(60)
        compiler.regex("quick")
        assert slow.is_alive()
    finally:
        done.set()
        slow.join()
