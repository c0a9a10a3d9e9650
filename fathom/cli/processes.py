"""Verbs under torchrun: all processes run the verb, and one speaks."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fathom.errors import FathomError, Interrupted, ResourceError
from fathom.locale import tr

if TYPE_CHECKING:
    from fathom.parallel.processes import Processes

_FOLLOWER_SECONDS = 1.0
"""How long a process waits for the leading one to speak first."""
_LOST_SECONDS = 4.0
"""And for the process whose loss it noticed."""


@contextmanager
def joined(device: str) -> Iterator[Processes | None]:
    """Join the processes that torchrun started for a ``with`` block; None where there is one.

    What ends one process ends all, and is said once, with the rank it came from.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield None
        return
    from fathom.model.device import resolve_device
    from fathom.parallel.processes import Processes

    own = resolve_device(device)
    if own.type == "cuda" and own.index is None:
        own = resolve_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    processes = Processes(own)
    try:
        yield processes
    except (FathomError, Interrupted) as error:
        raise _spoken_once(processes, error) from None
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        problem = tr("another process was lost; see above, and continue with --resume")
        raise _spoken_once(processes, ResourceError(problem), lost=True) from error
    processes.leave()


def _spoken_once(processes: Processes, error: FathomError | Interrupted, *, lost: bool = False) -> BaseException:
    """Return what this process ends with: the error, or nothing to say where another has spoken.

    Who leads speaks first, and of a process that was ``lost`` that one itself, if it can.
    """
    if lost:
        time.sleep(_LOST_SECONDS)
    elif not processes.leads:
        time.sleep(_FOLLOWER_SECONDS)
    sys.stdout.flush()
    if not processes.may_speak():
        return SystemExit(1)
    if processes.leads:
        return error
    said = tr("rank {rank}: {problem}", rank=processes.rank, problem=error)
    return Interrupted(said) if isinstance(error, Interrupted) else FathomError(said)


def _is_lost_connection(error: RuntimeError) -> bool:
    words = str(error).lower()
    return any(word in words for word in ("gloo", "nccl", "connection", "peer", "store"))
