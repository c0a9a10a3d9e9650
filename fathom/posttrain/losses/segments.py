"""Sums over the tokens of each answer.

X segments, Y values of any kind.
"""

from __future__ import annotations

from torch import Tensor


def segment_sum(values_N: Tensor, row_N: Tensor, rows: int) -> Tensor:
    """Sum of each answer's tokens, with gradient: (B,), 0 for an answer without tokens."""
    return values_N.new_zeros(rows).index_add(0, row_N, values_N)


def segment_broadcast(values_N: Tensor, row_N: Tensor, *, mean: bool = False) -> Tensor:
    """Give each token the sum, or mean, over all tokens of its answer that are here.

    ``row_N`` may number the answers of a larger batch: only those present cost memory.
    """
    place_N, rows = dense_ids(row_N)
    sum_X = segment_sum(values_N, place_N, rows)
    if mean:
        sum_X = sum_X / place_N.bincount(minlength=rows)
    return sum_X[place_N]


def dense_ids(names_Y: Tensor) -> tuple[Tensor, int]:
    """Rename integers to 0, 1, 2 and so on, in their order; and how many different ones there are."""
    names: Tensor
    place_Y: Tensor
    names, place_Y = names_Y.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return place_Y, names.shape[0]
