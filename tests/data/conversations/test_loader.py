"""Passes over samples: each once, in new order, the same after a restart, and no others' state."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fathom.data.conversations import ConversationLoader, Sample
from fathom.data.conversations.encoded import EncodedSamples
from fathom.data.loader import TokenBatch
from fathom.data.packed import PackedBatch
from fathom.errors import DataError


def made(count: int = 23, seed: int = 1) -> list[Sample]:
    """Return samples whose first token is their number."""
    rng = random.Random(seed)
    sizes = [rng.randint(2, 9) for _ in range(count)]
    return [
        Sample([1000 + i, *rng.choices(range(900), k=n - 1)], [False, *[rng.random() < 0.6 for _ in range(n - 1)]])
        for i, n in enumerate(sizes)
    ]


def loader(samples: list[Sample] | None = None, **settings: Any) -> ConversationLoader:
    return ConversationLoader(EncodedSamples.of(samples or made()), **{"sequence_length": 12, "seed": 3} | settings)


def parts(batch: PackedBatch | TokenBatch) -> list[tuple[int, int]]:
    """Return every position's token and target."""
    if isinstance(batch, PackedBatch):
        return list(zip(batch.tokens_N.tolist(), batch.targets_N.tolist(), strict=True))
    assert batch.targets_BT is not None
    read_BT = batch.tokens_BT1[:, :-1]
    return list(zip(read_BT.flatten().tolist(), batch.targets_BT.flatten().tolist(), strict=True))


def one_pass(packed: ConversationLoader) -> list[PackedBatch]:
    batches = []
    while packed.epochs < 1:
        batches.append(packed.next(1))
    return batches  # type: ignore[return-value]


def test_a_masked_pass_gives_every_sample_whole_and_once() -> None:
    samples = made()
    batches = one_pass(loader(samples))
    found = []
    for batch in batches:
        assert sum(batch.lengths) <= 12
        rows = torch.stack([batch.tokens_N, batch.targets_N]).split(list(batch.lengths), dim=1)
        found += [(row[0].tolist(), row[1].tolist()) for row in rows]
    expected = [
        (s.tokens[:-1], [t if k else -100 for t, k in zip(s.tokens[1:], s.learned[1:], strict=True)]) for s in samples
    ]
    assert sorted(found) == sorted(expected)
    packed = loader(samples)
    assert packed.examples_per_epoch == 23
    assert packed.tokens_per_epoch == sum(len(tokens) for tokens, _ in found)
    assert packed.trainable_tokens_per_epoch == sum(t != -100 for _, targets in found for t in targets)
    assert len(batches) < 23 / 1.5


def test_joined_windows_mark_the_last_token_of_every_sample() -> None:
    samples = made()
    joined = loader(samples, packing="joined", sequence_length=10)
    batches = [joined.next(1) for _ in range(joined.tokens_per_epoch)]  # ten passes
    read, ends = [], []
    for batch in batches:
        assert isinstance(batch, TokenBatch)
        assert batch.ends_BT is not None
        assert batch.targets_BT is not None
        assert (batch.targets_BT[batch.ends_BT] == -100).all()
        read += batch.tokens_BT1[:, :-1].flatten().tolist()
        ends += batch.ends_BT.flatten().tolist()
    parts = [0, *(index + 1 for index, last in enumerate(ends) if last)]
    found = Counter(tuple(read[a:b]) for a, b in itertools.pairwise(parts))
    assert found == Counter({tuple(sample.tokens): 10 for sample in samples})


def test_long_samples_do_not_come_first() -> None:
    longest = [max(batch.lengths) for batch in one_pass(loader())]
    assert longest != sorted(longest, reverse=True)


@pytest.mark.parametrize("length", [12, 50, 500])
def test_a_joined_pass_gives_every_token_once_and_windows_overlap_by_one(length: int) -> None:
    samples = made()
    joined = loader(samples, packing="joined", sequence_length=length)
    total = joined.tokens_per_epoch
    assert total == sum(len(s.tokens) for s in samples)
    batches = [joined.next(1) for _ in range(total)]
    stream = [part for batch in batches for part in parts(batch)]
    assert joined.epochs == length
    expected = Counter(
        (token, target if learned else -100)
        for s in samples
        for token, target, learned in zip(s.tokens, [*s.tokens[1:], 0], [*s.learned[1:], False], strict=True)
    )
    for epoch in range(min(length, 3)):
        assert Counter(stream[epoch * total : (epoch + 1) * total]) == expected
    for before, after in itertools.pairwise(batches):
        assert isinstance(before, TokenBatch)
        assert isinstance(after, TokenBatch)
        assert before.tokens_BT1.shape == (1, length + 1)
        assert before.tokens_BT1[0, -1] == after.tokens_BT1[0, 0]


@pytest.mark.parametrize("packing", ["masked", "joined"])
def test_passes_and_seeds_differ_in_order_and_not_in_content(packing: Any) -> None:
    samples = made()
    a, b = loader(samples, packing=packing), loader(samples, packing=packing, seed=4)

    def order(of: ConversationLoader, passes: int) -> list[int]:
        firsts: list[int] = []
        while len(firsts) < 23 * passes:
            firsts += [token for token, _ in parts(of.next(1)) if token >= 1000]
        return firsts[: 23 * passes]

    first = order(a, 2)
    assert sorted(first[:23]) == sorted(first[23:]) == list(range(1000, 1023))
    assert first[:23] != first[23:]
    assert first[:23] != order(b, 1)
    assert first[:23] != list(range(1000, 1023))


@pytest.mark.parametrize("packing", ["masked", "joined"])
@given(before=st.integers(0, 30), size=st.integers(1, 4), seed=st.integers(0, 2**63), length=st.integers(8, 40))
def test_restoring_at_any_batch_gives_the_same_batches(
    packing: Any, before: int, size: int, seed: int, length: int
) -> None:
    first = loader(packing=packing, seed=seed, sequence_length=length)
    for _ in range(before):
        first.next(size)
    saved = json.loads(json.dumps(first.state()))
    expected = [parts(first.next(size)) for _ in range(3)]
    second = loader(packing=packing, seed=seed, sequence_length=length)
    second.next(1)
    second.restore(saved)
    assert [parts(second.next(size)) for _ in range(3)] == expected
    assert second.state() == first.state()
    assert second.epochs == first.epochs


@pytest.mark.parametrize("packing", ["masked", "joined"])
def test_the_size_of_a_batch_does_not_change_what_comes(packing: Any) -> None:
    one, many = loader(packing=packing), loader(packing=packing)
    assert [part for _ in range(12) for part in parts(one.next(1))] == [
        part for _ in range(3) for part in parts(many.next(4))
    ]


@pytest.mark.parametrize("packing", ["masked", "joined"])
def test_states_of_other_samples_or_settings_are_refused_by_name(packing: Any) -> None:
    mine = loader(packing=packing)
    other = made()
    other[5].learned[1] = not other[5].learned[1]
    for state, words in [
        (loader(packing=packing, seed=4).state(), "seed is 4, here it is 3"),
        (loader(packing=packing, sequence_length=13).state(), "sequence_length is 13"),
        (loader(other, packing=packing).state(), "data is"),
        (loader(packing="joined" if packing == "masked" else "masked").state(), "packing is"),
        (mine.state() | {"place": 10**6}, "place 1000000 is in no epoch 0"),
        (mine.state() | {"epoch": -1}, "epoch is -1, which is no count"),
        (mine.state() | {"place": None}, "place is None"),
        ({}, "sequence_length is None"),
    ]:
        with pytest.raises(DataError, match=words):
            mine.restore(state)
    with pytest.raises(DataError, match="batch_size: must be 1 or more"):
        mine.next(0)


@pytest.mark.parametrize(
    ("samples", "length", "words"),
    [
        ([], 12, "there are none"),
        ([Sample([1, 2], [False, True])], 0, "sequence_length: must be 1"),
        ([Sample([1], [False])], 12, r"samples\[0\]: has 1 tokens"),
        ([Sample([1, 2], [False])], 12, r"2 tokens and 1 marks"),
        ([Sample([1, 2], [False, True]), Sample([1] * 14, [True] * 14)], 12, r"samples\[1\]: has 14 tokens .* 2 to 13"),
    ],
)
def test_samples_that_fit_no_sequence_are_refused(samples: list[Sample], length: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        ConversationLoader(EncodedSamples.of(samples), sequence_length=length, seed=1)
