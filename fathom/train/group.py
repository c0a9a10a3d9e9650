"""The processes that train one model together, each on its share of every batch, as training sees them.

Everything that ranks must agree on goes through a ``Group``: shares of the whole batch, losses and counts, gradients,
whether a step is finite, a stop that one rank was asked for, and when a checkpoint is due. One process is ``ALONE``.

X processes, Y values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

_Value = TypeVar("_Value")


class Group(Protocol):
    """Collectives over ranks. All ranks call each at the same point with tensors of the same shape and dtype.

    Results are the same on all ranks; inputs may be overwritten.
    """

    @property
    def rank(self) -> int:
        """This process among ``size``, from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of ranks."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the elementwise sum."""
        ...

    def max(self, tensor: Tensor) -> Tensor:
        """Return the elementwise maximum; NaN where any rank has it."""
        ...

    def broadcast(self, value: _Value) -> _Value:
        """Return rank 0's value, which can be pickled."""
        ...

    def barrier(self) -> None:
        """Wait until all ranks have come here."""
        ...

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum the gradients of parameters that ranks hold copies of, in place.

        Losses are parts of the whole batch's mean, so that gradients are summed, not averaged. Nothing is left to do
        where the backward pass has reduced them already, as that of fully sharded parameters does.
        """
        ...


class Alone:
    """A group of one process: every collective is the identity."""

    rank = 0
    size = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the tensor."""
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        """Return the tensor."""
        return tensor

    def broadcast(self, value: _Value) -> _Value:
        """Return the value."""
        return value

    def barrier(self) -> None:
        """Return at once."""

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Leave the gradients as they are."""


ALONE = Alone()


def any_rank(group: Group, flag: bool) -> bool:
    """Whether the flag is set on any rank."""
    return bool(group.max(torch.tensor(int(flag))))


def gathered(group: Group, values: Sequence[int]) -> list[list[int]]:
    """Return every rank's values, in the order of ranks."""
    table_XY = torch.zeros(group.size, len(values), dtype=torch.int64)
    table_XY[group.rank] = torch.tensor(list(values))
    return [[int(value) for value in row] for row in group.sum(table_XY).tolist()]
