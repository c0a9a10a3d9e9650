from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.data.needle import draw_fact, make_needle
from fathom.data.shards import TokenShards
from fathom.errors import DataError
from fathom.tokenizer import Tokenizer


@given(
    length=st.integers(90, 600),
    depth=st.floats(0, 1),
    seed=st.integers(0, 10**6),
    split=st.sampled_from(["train", "eval"]),
)
@settings(max_examples=60, deadline=None)
def test_prompt_and_answer_have_the_length_and_the_fact_its_depth(
    train_shards: dict[str, TokenShards], tiny_tokenizer: Tokenizer, length: int, depth: float, seed: int, split
) -> None:
    haystack = train_shards["cat"].read(0, len(train_shards["cat"]))
    made = make_needle(tiny_tokenizer, haystack, length, depth, np.random.default_rng(seed), split)
    assert len(made.prompt_ids) + len(made.answer_ids) == length
    assert made.prompt_ids[0] == tiny_tokenizer.bos_id
    text = tiny_tokenizer.decode(made.prompt_ids)
    fact = f"\nThe secret number of {made.key} is {made.number}.\n"
    assert text.endswith(f"\nThe secret number of {made.key} is ")
    assert tiny_tokenizer.decode(made.answer_ids) == str(made.number)
    assert text.count(fact) == 1
    fact_ids = tiny_tokenizer.encode(fact)
    room = length - len(fact_ids) - len(made.answer_ids) - 1
    room -= len(tiny_tokenizer.encode(f"\nThe secret number of {made.key} is "))
    place = next(i for i in range(length) if list(made.prompt_ids[i : i + len(fact_ids)]) == fact_ids) - 1
    assert abs(place - depth * room) <= 25
    if depth in (0.0, 1.0):
        assert place == depth * room
    hay = made.prompt_ids[1 : 1 + place] + made.prompt_ids[1 + place + len(fact_ids) :][: room - place]
    assert np.array(hay, dtype=np.int64).tobytes() in haystack.tobytes()


def test_training_and_evaluation_share_neither_keys_nor_numbers() -> None:
    rng = np.random.default_rng(0)
    facts = {split: [draw_fact(rng, split) for _ in range(4000)] for split in ("train", "eval")}
    keys = {split: {key for key, _ in drawn} for split, drawn in facts.items()}
    numbers = {split: {number for _, number in drawn} for split, drawn in facts.items()}
    assert not keys["train"] & keys["eval"]
    assert not numbers["train"] & numbers["eval"]
    assert len(keys["train"]) > 150
    assert len(keys["eval"]) > 40
    assert all(10_000 <= number <= 99_999 for drawn in numbers.values() for number in drawn)
    assert {number % 5 for number in numbers["eval"]} == {0}
    assert {number % 5 for number in numbers["train"]} == {1, 2, 3, 4}


def test_the_fact_goes_to_a_sentence_end_where_one_is_near(tiny_tokenizer: Tokenizer) -> None:
    haystack = tiny_tokenizer.encode("abc def.\n" * 200)
    made = make_needle(tiny_tokenizer, haystack, 300, 0.5, np.random.default_rng(1))
    before = tiny_tokenizer.decode(made.prompt_ids).split("\nThe secret")[0]
    assert before.endswith(("def.\n", "def."))


def test_the_same_generator_gives_the_same_sample(tiny_tokenizer: Tokenizer) -> None:
    haystack = tiny_tokenizer.encode("some text here. " * 300)
    one, two = (make_needle(tiny_tokenizer, haystack, 200, 0.3, np.random.default_rng(4)) for _ in range(2))
    assert one == two


def test_what_cannot_fit_is_refused_with_the_number_that_would(tiny_tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match=r"length: 10 tokens cannot hold the fact and the question; use \d+ or more"):
        make_needle(tiny_tokenizer, [5] * 500, 10, 0.5, rng)
    with pytest.raises(DataError, match="haystack: 50 tokens"):
        make_needle(tiny_tokenizer, [5] * 50, 400, 0.5, rng)
    with pytest.raises(DataError, match=r"depth: must lie between 0 and 1, got 1\.5"):
        make_needle(tiny_tokenizer, [5] * 500, 400, 1.5, rng)
