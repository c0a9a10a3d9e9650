from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from fathom.chat.output.budget import ThinkingBudget, think_end_ids, think_tag_ids
from fathom.errors import DataError, SpecError
from fathom.tokenizer import Tokenizer


@dataclass
class Only:
    """Allows token 7 alone, and records the tokens it was given."""

    taken: list[int] = field(default_factory=list)

    def fill_bitmask(self, bitmask_W: Tensor) -> bool:
        bitmask_W[:] = 0
        bitmask_W[0] = 1 << 7
        return True

    def accept(self, token_id: int) -> None:
        self.taken.append(token_id)

    @property
    def finished(self) -> bool:
        return len(self.taken) == 2

    def copy(self) -> Only:
        return Only(list(self.taken))


def allowed(budget: ThinkingBudget, vocab_size: int) -> list[int] | None:
    bitmask_W = torch.full(((vocab_size + 31) // 32,), -1, dtype=torch.int32)
    if not budget.fill_bitmask(bitmask_W):
        assert bool((bitmask_W == -1).all())
        return None
    return [i for i in range(vocab_size) if (int(bitmask_W[i // 32]) >> (i % 32)) & 1]


def without_special_think(tokenizer: Tokenizer) -> Tokenizer:
    parsed = json.loads(tokenizer.tokenizer_json)
    think = {"<think>", "</think>"}
    parsed["added_tokens"] = [token for token in parsed["added_tokens"] if token["content"] not in think]
    vocabulary = parsed["model"]["vocab"]
    parsed["model"]["vocab"] = {{"<think>": "<0>", "</think>": "<1>"}.get(t, t): i for t, i in vocabulary.items()}
    return Tokenizer(json.dumps(parsed), tokenizer.config)


@pytest.fixture(params=["special", "text"])
def used(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Tokenizer:
    return tokenizer if request.param == "special" else without_special_think(tokenizer)


def test_the_closing_tag_is_forced_token_by_token_and_the_rest_handed_over(used: Tokenizer) -> None:
    inner = Only()
    budget = ThinkingBudget(used, 3, True, inner)
    for token in used.encode("the the the")[:3]:
        assert allowed(budget, used.vocab_size) is None
        budget.accept(token)
    closing = []
    while budget.thinking:
        assert not budget.finished
        (only,) = allowed(budget, used.vocab_size) or []
        closing.append(only)
        budget.accept(only)
    assert tuple(closing) == think_end_ids(used)
    assert used.decode(closing, skip_special=False) == "</think>"
    assert allowed(budget, used.vocab_size) == [7]
    budget.accept(7)
    budget.accept(7)
    assert inner.taken == [7, 7]
    assert budget.finished


def test_a_model_that_closes_by_itself_is_handed_over_at_once(used: Tokenizer) -> None:
    inner = Only()
    budget = ThinkingBudget(used, 100, True, inner)
    for token in think_tag_ids(used, "so\n</think>"):
        assert allowed(budget, used.vocab_size) is None
        budget.accept(token)
    assert allowed(budget, used.vocab_size) == [7]
    assert inner.taken == []


def test_an_answer_may_open_its_reasoning_itself(used: Tokenizer) -> None:
    budget = ThinkingBudget(used, 1, False)
    for token in think_tag_ids(used, "\n<think>"):
        assert allowed(budget, used.vocab_size) is None
        budget.accept(token)
    budget.accept(used.encode("a")[0])
    assert allowed(budget, used.vocab_size) == [think_end_ids(used)[0]]
    plain = ThinkingBudget(used, 0, False)
    for token in think_tag_ids(used, "No <think>"):
        plain.accept(token)
        assert allowed(plain, used.vocab_size) is None
    strict = ThinkingBudget(used, 0, False, Only())
    assert allowed(strict, used.vocab_size) == [7]


def test_copies_go_their_own_way(used: Tokenizer) -> None:
    budget = ThinkingBudget(used, 1, True, Only())
    other = budget.copy()
    other.accept(used.encode("a")[0])
    assert allowed(budget, used.vocab_size) is None
    assert allowed(other, used.vocab_size) == [think_end_ids(used)[0]]
    while other.thinking:
        other.accept((allowed(other, used.vocab_size) or [0])[0])
    third = other.copy()
    third.accept(7)
    third.accept(7)
    assert third.finished
    assert not other.finished


def test_what_may_not_come_is_refused(used: Tokenizer) -> None:
    budget = ThinkingBudget(used, 0, True)
    with pytest.raises(DataError, match="the thinking budget is used up"):
        budget.accept(think_end_ids(used)[0] + 1)
    assert allowed(budget, used.vocab_size) == [think_end_ids(used)[0]]
    with pytest.raises(SpecError, match="thinking_budget: must not be negative"):
        ThinkingBudget(used, -1, True)


def test_the_topmost_bit_of_a_word_is_set_too(tokenizer: Tokenizer) -> None:
    budget = ThinkingBudget(tokenizer, 0, True)
    budget._forced = (31,)
    assert allowed(budget, tokenizer.vocab_size) == [31]
