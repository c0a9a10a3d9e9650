"""The processes that train one model together, each on its share of every batch, as training sees them.

Everything that ranks must agree on goes through a ``Group``: shares of the whole batch, losses and counts, gradients,
whether a step is finite, a stop that one rank was asked for, and when a checkpoint is due. One process is ``ALONE``.

X processes, Y values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from fathom.model.cache import KeyValueCache
from fathom.model.decoder import Decoder
from fathom.model.moe import Routing
from fathom.parallel.pipeline import Pipeline
from fathom.train.optimizer import gradient_norm

_Value = TypeVar("_Value")


class Group(Protocol):
    """Collectives over ranks. All ranks call each at the same point with tensors of the same shape and dtype.

    Results are the same on all ranks; inputs may be overwritten.
    """

    @property
    def rank(self) -> int:
        """This process among ``size``, from 0; processes that take the same sequences have the same rank."""
        ...

    @property
    def size(self) -> int:
        """Number of ranks."""
        ...

    @property
    def processes(self) -> ProcessGroup | None:
        """All processes, for saving what each of them holds a part of; None where each holds the whole model."""
        ...

    @property
    def pipeline(self) -> Pipeline | None:
        """This process's stages; None where it holds all layers."""
        ...

    @property
    def context_rank(self) -> int:
        """This process among those that share the tokens of the same sequences, from 0."""
        ...

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and reports."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the elementwise sum."""
        ...

    def sum_parts(self, tensor: Tensor) -> Tensor:
        """Return the elementwise sum over ranks and over the stages of a pipeline that each of them has."""
        ...

    def max(self, tensor: Tensor) -> Tensor:
        """Return the elementwise maximum; NaN where any rank has it."""
        ...

    def broadcast(self, value: _Value) -> _Value:
        """Return rank 0's value, which can be pickled."""
        ...

    def names_of_all(self, names: Sequence[str]) -> list[str]:
        """Return the names that any stage of a pipeline has, in the order of stages."""
        ...

    def barrier(self) -> None:
        """Wait until all ranks have come here."""
        ...

    def own_tokens(self, length: int) -> slice:
        """Return which of a sequence's tokens are this process's.

        Raises:
            SpecError: the length does not divide among those that share it.
        """
        ...

    def attention_cache(self, model: Decoder, layers: int) -> KeyValueCache | None:
        """Return what brings the keys and values of a sequence's other tokens; None where one process has them all."""
        ...

    def whole_sequences(self, routing: Sequence[Routing]) -> Sequence[Routing]:
        """Return the routing of whole sequences."""
        ...

    def shared_loss(self, loss: Tensor) -> Tensor:
        """Return a loss of whole sequences as this process's part of it: the parts add up, gradients are whole."""
        ...

    def begin_micro_batch(self, model: nn.Module, *, last: bool) -> None:
        """Prepare for a micro-batch, the ``last`` of a step or another: gradients may be summed after the last only."""
        ...

    def gradient_norm(self, parameters: Iterable[Tensor]) -> Tensor:
        """Return the 2-norm of all gradients of the model, of which ranks may hold parts, as a plain scalar."""
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
    context_rank = 0
    leads = True
    processes = None
    pipeline = None

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the tensor."""
        return tensor

    def sum_parts(self, tensor: Tensor) -> Tensor:
        """Return the tensor."""
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        """Return the tensor."""
        return tensor

    def broadcast(self, value: _Value) -> _Value:
        """Return the value."""
        return value

    def names_of_all(self, names: Sequence[str]) -> list[str]:
        """Return the names."""
        return list(names)

    def barrier(self) -> None:
        """Return at once."""

    def own_tokens(self, length: int) -> slice:
        """Return all."""
        return slice(0, length)

    def attention_cache(self, model: Decoder, layers: int) -> None:
        """Need none."""

    def whole_sequences(self, routing: Sequence[Routing]) -> Sequence[Routing]:
        """Return what is given."""
        return routing

    def shared_loss(self, loss: Tensor) -> Tensor:
        """Return the loss."""
        return loss

    def begin_micro_batch(self, model: nn.Module, *, last: bool) -> None:
        """Need nothing."""

    def gradient_norm(self, parameters: Iterable[Tensor]) -> Tensor:
        """Return the norm of the gradients there are."""
        return gradient_norm(parameters)

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
