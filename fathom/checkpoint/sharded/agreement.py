"""What one rank raises, all ranks raise: one error that names the rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from fathom.errors import CheckpointError, ResourceError, explain_os_error

_Value = TypeVar("_Value")


@contextmanager
def one_error() -> Iterator[None]:
    """Raise what torch.distributed.checkpoint collected from ranks as the error of the first of them.

    Raises:
        ResourceError: a rank's disk or memory refuses.
        CheckpointError: what a rank read or was given cannot be used.
    """
    try:
        yield
    except CheckpointException as found:
        raise _joined({rank: error for rank, (error, _) in found.failures.items()}) from None


def agree(group: dist.ProcessGroup | None, work: Callable[[], _Value]) -> _Value:
    """Do something on every rank and return this rank's result, or raise one error on all; without a group, alone."""
    if group is None:
        return work()
    result: _Value | None = None
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failure = error.with_traceback(None)
    failures: list[Exception | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(failures, failure, group=group)
    found = {rank: error for rank, error in enumerate(failures) if error is not None}
    if found:
        raise _joined(found) from None
    return result  # type: ignore[return-value]


def _joined(failures: Mapping[int, BaseException]) -> BaseException:
    rank = min(failures)
    error, others = failures[rank], len(failures) - 1
    where = f"rank {rank}" + (f" and {others} more" if others else "")
    if isinstance(error, CheckpointError | ResourceError):
        return type(error)(f"{where}: {error}")
    if isinstance(error, OSError):
        return ResourceError(f"{where}: {explain_os_error(error)}")
    if isinstance(error, MemoryError):
        return ResourceError(f"{where}: out of memory; save with fewer bytes a rank, or without staging")
    error.add_note(f"raised by {where}")
    return error
