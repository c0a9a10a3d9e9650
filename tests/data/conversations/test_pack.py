"""Packing: every sample once, in bins that hold it, and targets that never cross from one to the next."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fathom.data.conversations.pack import pack_into_bins, pack_samples


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=80), spare=st.integers(0, 30), window=st.integers(1, 90)
)
def test_every_sample_stands_in_one_bin_that_holds_it(lengths: list[int], spare: int, window: int) -> None:
    room = max(lengths) + spare
    order = np.random.default_rng(1).permutation(len(lengths)).tolist()
    packed = pack_into_bins(order, lengths, room, window)
    assert sorted(index for bin_ in packed for index in bin_) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in bin_) <= room for bin_ in packed)


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=80))
def test_one_window_wastes_no_more_than_best_fit_decreasing_may(lengths: list[int]) -> None:
    """Two bins are never both at most half full: the samples of one would have gone into the other."""
    packed = pack_into_bins(range(len(lengths)), lengths, 20, len(lengths))
    filled = [sum(lengths[index] for index in bin_) for bin_ in packed]
    assert sum(fill <= 10 for fill in filled) <= 1


def test_known_lengths_fill_their_bins() -> None:
    lengths = [6, 4, 7, 3, 5, 5]
    assert sorted(sorted(lengths[i] for i in bin_) for bin_ in pack_into_bins(range(6), lengths, 10)) == [
        [3, 7],
        [4, 6],
        [5, 5],
    ]


def test_samples_laid_end_to_end_predict_their_own_next_tokens() -> None:
    tokens = [np.array([1, 2, 3, 4]), np.array([5, 6])]
    learned = [np.array([False, False, True, True]), np.array([True, True])]
    batch = pack_samples(tokens, learned)
    assert batch.tokens_N.tolist() == [1, 2, 3, 5]
    assert batch.targets_N.tolist() == [-100, 3, 4, 6]
    assert batch.lengths == (3, 1)
