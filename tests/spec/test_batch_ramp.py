from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.spec.train import AdamWSpec, BatchSpec, TrainSpec

V2 = BatchSpec(size=9216, micro_batch_size=1, initial_size=2304, ramp_tokens=225_000_000_000)  # V2 §3.1.2


@pytest.mark.parametrize(
    ("tokens", "size"),
    [(0, 2304), (112_500_000_000, 5760), (225_000_000_000, 9216), (8_100_000_000_000, 9216)],
)
def test_v2s_ramp_from_2304_to_9216(tokens: int, size: int) -> None:
    assert V2.at(tokens) == size


def test_without_a_ramp_the_size_is_constant() -> None:
    batch = BatchSpec(size=8, micro_batch_size=4)
    assert [batch.at(n) for n in (0, 1, 10**9)] == [8, 8, 8]


@given(
    micro=st.integers(1, 16),
    start=st.integers(1, 20),
    extra=st.integers(0, 20),
    ramp=st.integers(1, 10**6),
    tokens=st.lists(st.integers(0, 2 * 10**6), min_size=2, max_size=10),
)
def test_a_ramp_rises_in_whole_micro_batches(micro: int, start: int, extra: int, ramp: int, tokens: list[int]) -> None:
    batch = BatchSpec(
        size=micro * (start + extra), micro_batch_size=micro, initial_size=micro * start, ramp_tokens=ramp
    )
    sizes = [batch.at(n) for n in sorted(tokens)]
    assert all(size % micro == 0 and batch.initial_size <= size <= batch.size for size in sizes)  # type: ignore[operator]
    assert all(one <= two for one, two in pairwise(sizes))
    assert batch.at(0) == micro * start
    assert batch.at(ramp) == batch.size


def test_a_stage_needs_one_batch_of_its_first_size() -> None:
    batch = BatchSpec(size=8, micro_batch_size=1, initial_size=2, ramp_tokens=1000)
    spec = TrainSpec(sequence_length=16, total_tokens=32, batch=batch, optimizer=AdamWSpec(lr=1e-3))
    assert spec.total_tokens == batch.at(0) * spec.sequence_length
