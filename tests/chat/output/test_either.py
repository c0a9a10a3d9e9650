"""An answer of one grammar or a call of another: the first token decides."""

from __future__ import annotations

import pytest
import torch

from fathom.chat.grammar import GrammarCompiler
from fathom.chat.output.bitmask import allow, allows
from fathom.chat.output.either import Either
from fathom.errors import DataError
from fathom.tokenizer import Tokenizer


def allowed(constraint: Either, size: int) -> set[int]:
    bitmask_W = torch.zeros((size + 31) // 32, dtype=torch.int32)
    assert constraint.fill_bitmask(bitmask_W)
    return {token_id for token_id in range(size) if allows(bitmask_W, token_id)}


@pytest.mark.parametrize("text", ["abc", "xyz", "axz"])
def test_the_first_token_decides_which_grammar_holds(tokenizer: Tokenizer, text: str) -> None:
    compiler = GrammarCompiler(tokenizer)
    either = Either(compiler.regex("abc|axz"), compiler.regex("xyz|abd"))
    ids = [tokenizer.encode(character, continues=True)[0] for character in text]
    first = allowed(either, tokenizer.vocab_size)
    assert {tokenizer.encode(c, continues=True)[0] for c in "ax"} <= first
    for token_id in ids:
        assert token_id in allowed(either, tokenizer.vocab_size)
        either = either.copy()
        either.accept(token_id)
    assert either.finished
    with pytest.raises(DataError):
        either.accept(ids[0])


def test_a_token_that_both_allow_is_the_answers(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer)
    either = Either(compiler.regex("ab"), compiler.regex("ac"))
    a, b, c = (tokenizer.encode(character, continues=True)[0] for character in "abc")
    allowed(either, tokenizer.vocab_size)
    either.accept(a)
    assert allowed(either, tokenizer.vocab_size) & {b, c} == {b}


@pytest.mark.parametrize("token_id", [0, 31, 32, 63])
def test_a_bit_is_set_alone(token_id: int) -> None:
    bitmask_W = torch.zeros(2, dtype=torch.int32)
    allow(bitmask_W, token_id)
    assert [each for each in range(64) if allows(bitmask_W, each)] == [token_id]
