"""A group whose ranks are threads of one process, each with a copy of the model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fathom.train.group import ALONE
from fathom.train.optimizer import gradient_norm

Value = TypeVar("Value")


class ThreadGroup:
    """One rank; all ranks share ``slots`` and ``meeting``."""

    def __init__(self, rank: int, slots: list[Any], meeting: threading.Barrier) -> None:
        self.rank, self.size, self.leads, self.context_rank = rank, len(slots), rank == 0, 0
        self._slots, self._meeting = slots, meeting

    def sum(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._exchanged(tensor.clone())).sum(0, dtype=tensor.dtype)

    def sum_parts(self, tensor: Tensor) -> Tensor:
        return self.sum(tensor)

    def max(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._exchanged(tensor.clone())).amax(0)

    def broadcast(self, value: Value) -> Value:
        first: Value = self._exchanged(value)[0]
        return first

    def names_of_all(self, names: Sequence[str]) -> list[str]:
        return list(names)

    def barrier(self) -> None:
        self._exchanged(None)

    processes = pipeline = None
    own_tokens, attention_cache = ALONE.own_tokens, ALONE.attention_cache
    whole_sequences, shared_loss = ALONE.whole_sequences, ALONE.shared_loss

    def begin_micro_batch(self, model: nn.Module, *, last: bool) -> None:
        pass

    def gradient_norm(self, parameters: Iterable[Tensor]) -> Tensor:
        return gradient_norm(parameters)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.copy_(self.sum(parameter.grad))

    def _exchanged(self, value: Any) -> list[Any]:
        self._slots[self.rank] = value
        self._meeting.wait(timeout=60)
        found = list(self._slots)
        self._meeting.wait(timeout=60)
        return found


def run_ranks(work: Callable[[ThreadGroup], Value], size: int = 2) -> list[Value | BaseException]:
    """Run ``work`` once a rank, all at the same time; returns what each returned or raised, in the order of ranks."""
    slots: list[Any] = [None] * size
    meeting = threading.Barrier(size)
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadGroup(rank, slots, meeting))
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
