"""Groups keep together, every pass holds each once, and a restored loader goes on with the same batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fathom.data.packed import PackedBatch
from fathom.errors import DataError
from fathom.posttrain.preferences import GroupLoader, TrainingExample


def entry(value: int, length: int) -> TrainingExample:
    tokens_T = torch.full((length,), value)
    return TrainingExample(tokens_T, tokens_T + 100, {"place": torch.arange(length)})


def make_loader(seed: int = 1, extra: int = 0) -> GroupLoader:
    groups = [(entry(2 * i, 2 + i % 3), entry(2 * i + 1, 3 + i % 2)) for i in range(10)]
    return GroupLoader([*groups, (entry(50, 30 + extra), entry(51, 9))], sequence_length=10, seed=seed)


def drawn(batch: PackedBatch) -> list[int]:
    starts = torch.tensor((0, *batch.lengths[:-1])).cumsum(0)
    return [int(value) for value in batch.tokens_N[starts]]


def test_every_pass_holds_each_pair_once_and_pairs_stand_together() -> None:
    loader, seen = make_loader(), []
    while len(seen) < 44:
        batch = loader.next(2)
        assert batch.sequences_per_example == 2
        assert sum(batch.lengths) <= 20 or len(batch.lengths) == 2
        assert torch.equal(batch.targets_N, batch.tokens_N + 100)
        assert batch.columns["share"].tolist() == [pytest.approx(2 / len(batch.lengths))] * sum(batch.lengths)
        assert torch.equal(batch.columns["place"], torch.cat([torch.arange(n) for n in batch.lengths]))
        seen += drawn(batch)
    assert all(b == a + 1 for a, b in zip(seen[::2], seen[1::2], strict=True))
    first, second = seen[0:22:2], seen[22:44:2]
    assert sorted(first) == sorted(second) == [*range(0, 20, 2), 50]
    assert first != second
    assert loader.tokens_per_epoch == sum(2 + i % 3 + 3 + i % 2 for i in range(10)) + 39


def test_a_group_shares_what_it_begins_with_until_one_learns() -> None:
    def one(tokens: list[int], learned_from: int) -> TrainingExample:
        tokens_T = torch.tensor(tokens)
        targets_T = torch.where(torch.arange(len(tokens)) < learned_from, -100, tokens_T)
        return TrainingExample(tokens_T, targets_T, {})

    chosen = one([1, 2, 3, 4, 5], 2)
    others = [one([1, 2, 3, 4, 6], 2), one([1, 2, 3, 9], 4), one([1, 2], 2), one([7, 2, 3], 3)]
    loader = GroupLoader([(chosen, *others)], sequence_length=32, seed=0)
    assert loader.next(1).shared_prefix_lengths == (0, 2, 3, 1, 0)


def test_a_restored_loader_goes_on_with_the_same_batches() -> None:
    loader, other = make_loader(), make_loader()
    for _ in range(5):
        loader.next(2)
    other.restore(loader.state())
    for _ in range(9):
        one, two = loader.next(2), other.next(2)
        assert one.lengths == two.lengths
        assert torch.equal(one.tokens_N, two.tokens_N)


@pytest.mark.parametrize(
    ("other", "changed", "message"),
    [
        (make_loader(seed=2), {}, "seed is 1, here it is 2"),
        (make_loader(extra=1), {}, "data is "),
        (make_loader(), {"drawn": -1}, "drawn is -1"),
        (make_loader(), {"drawn": None}, "drawn is None"),
        (make_loader(), {"drawn": True}, "drawn is True"),
        (make_loader(), {"drawn": 10**30}, "drawn is 1000"),
    ],
)
def test_another_loaders_state_is_refused(other: GroupLoader, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        other.restore({**make_loader().state(), **changed})


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(DataError, match="there are none"):
        GroupLoader([], sequence_length=8, seed=1)
    with pytest.raises(DataError, match="differ in size"):
        GroupLoader([(entry(1, 2),), (entry(1, 2), entry(2, 2))], sequence_length=8, seed=1)
    with pytest.raises(DataError, match="batch_size"):
        make_loader().next(0)
