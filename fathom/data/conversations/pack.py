"""Packing samples into fixed-size bins, and their targets."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fathom.data.packed import PackedBatch
from fathom.spec.targets import IGNORE_INDEX

Tokens = NDArray[np.int64]
PACKING_WINDOW = 1024
"""Samples that are packed at a time: more leave less padding, fewer stay nearer the order of the epoch."""


def pack_into_bins(
    order: Sequence[int], lengths: Sequence[int], capacity: int, window: int = PACKING_WINDOW
) -> list[list[int]]:
    """Pack samples into few bins of ``capacity`` tokens (best fit decreasing).

    ``order`` is cut into windows; in each, the longest sample goes first, into the fullest bin that it fits.
    Costs n log n. Every sample must fit a bin.
    """
    packed: list[list[int]] = []
    for start in range(0, len(order), window):
        free: list[tuple[int, int]] = []  # free tokens and bin, ascending
        for sample in sorted(order[start : start + window], key=lambda index: -lengths[index]):
            place = bisect_left(free, (lengths[sample], -1))
            if place == len(free):
                left, chosen = capacity, len(packed)
                packed.append([])
            else:
                left, chosen = free.pop(place)
            packed[chosen].append(sample)
            insort(free, (left - lengths[sample], chosen))
    return packed


def pack_samples(tokens: Sequence[Tokens], learned: Sequence[NDArray[np.bool_]]) -> PackedBatch:
    """Return whole samples as one batch in which each sees nothing of the others."""
    inputs = np.concatenate([sample[:-1] for sample in tokens])
    targets = np.concatenate([next_token_targets(sample, mask) for sample, mask in zip(tokens, learned, strict=True)])
    lengths = tuple(len(sample) - 1 for sample in tokens)
    return PackedBatch(torch.from_numpy(inputs), torch.from_numpy(targets), lengths)


def next_token_targets(tokens: Tokens, learned: NDArray[np.bool_]) -> Tokens:
    """Return the target at each position but the last: the next token where the loss mask is set, -100 elsewhere."""
    return np.where(learned[1:], tokens[1:], IGNORE_INDEX)
