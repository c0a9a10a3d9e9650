"""Repetition in the text, against a search through all of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.engine.drafting.ngram_index import NgramIndex


def searched(tokens: Sequence[int], count: int, shortest: int, longest: int) -> list[int]:
    """Try every length, the longest first, and every place, the latest first."""
    for length in range(min(longest, len(tokens) - 1), shortest - 1, -1):
        for behind in range(len(tokens) - 1, length - 1, -1):
            if tokens[behind - length : behind] == tokens[-length:]:
                text = list(tokens)
                for index in range(behind, behind + count):
                    text.append(text[index])
                return text[len(tokens) :]
    return []


@given(
    tokens=st.lists(st.integers(0, 2), min_size=1, max_size=60),
    count=st.integers(1, 6),
    lengths=st.sampled_from([(1, 1), (1, 4), (2, 3), (3, 8)]),
)
def test_drafts_follow_the_latest_of_the_longest_earlier_occurrences(
    tokens: list[int], count: int, lengths: tuple[int, int]
) -> None:
    shortest, longest = lengths
    growing: list[int] = []
    history = NgramIndex(growing, shortest=shortest, longest=longest)
    for end, token in enumerate(tokens, start=1):
        growing.append(token)
        if end % 3 == 0 or end == len(tokens):  # asked now and then, as while decoding
            assert history.propose(count) == searched(growing, count, shortest, longest)


def test_a_period_goes_on_beyond_the_end() -> None:
    assert NgramIndex([7, 8, 9, 7, 8, 9, 7, 8], shortest=2, longest=3).propose(5) == [9, 7, 8, 9, 7]


@pytest.mark.parametrize("tokens", [[], [1], [1, 2, 3], [1, 2, 3, 4, 2, 3]])
def test_what_did_not_occur_has_no_continuation(tokens: list[int]) -> None:
    assert NgramIndex(tokens).propose(3) == []


def test_a_frequent_run_costs_no_more_than_a_few_comparisons() -> None:
    class Counted(list[int]):
        reads = 0

        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            Counted.reads += 1
            return super().__getitem__(index)

    tokens = Counted([1, 1, 1, 2] * 1000)
    history = NgramIndex(tokens, shortest=1)
    history.propose(1)
    tokens.append(2)  # seen a thousand times
    Counted.reads = 0
    assert history.propose(1) == [2]
    assert Counted.reads < 64 * 3
