"""Read-ahead: reads the next tensor while the previous one is written."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterator, Sequence

from torch import Tensor

NamedTensor = tuple[str, Tensor]
LIMIT = 256 << 20
"""Bytes that may be held together; a tensor beyond it is held alone."""


def read_ahead(stream: Iterator[NamedTensor], sizes: Sequence[int], limit: int = LIMIT) -> Iterator[NamedTensor]:
    """Yield what ``stream`` yields, reading on another thread while the consumer works.

    ``sizes`` are the bytes of its tensors, in order. The next one is read only when it and those the consumer is not
    done with take at most ``limit`` bytes together, so that memory stays bounded by the largest. What ``stream`` raises
    is raised here, after what came before it. The thread ends with the iteration, however it ends.
    """
    ahead = _ReadAheadQueue(stream, sizes, limit)
    thread = threading.Thread(target=ahead.run, name="read-ahead", daemon=True)
    thread.start()
    try:
        yield from ahead.taken()
    finally:
        ahead.close()
        thread.join()
    if ahead.error is not None:
        raise ahead.error


class _ReadAheadQueue:
    """What both threads share; every field is used under ``changed``."""

    def __init__(self, stream: Iterator[NamedTensor], sizes: Sequence[int], limit: int) -> None:
        self.stream, self.sizes, self.limit = stream, sizes, limit
        self.changed = threading.Condition()
        self.ready: deque[tuple[NamedTensor, int]] = deque()
        self.held = 0
        self.closed = self.finished = False
        self.error: BaseException | None = None

    def run(self) -> None:
        """Read tensors until there are none left, or the consumer has stopped."""
        try:
            for size in itertools.chain(self.sizes, itertools.repeat(0)):
                if not self._reserve(size):
                    break
                made = next(self.stream, None)
                if made is None:
                    break
                with self.changed:
                    self.ready.append((made, size))
                    self.changed.notify_all()
                del made  # else it would be held beside the next one
        except BaseException as error:
            self.error = error
        finally:
            with self.changed:
                self.finished = True
                self.changed.notify_all()

    def taken(self) -> Iterator[NamedTensor]:
        """Yield tensors, and free the bytes of each when the next is asked for."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.ready or self.finished)
                if not self.ready:
                    return
                named, size = self.ready.popleft()
            yield named
            del named
            with self.changed:
                self.held -= size
                self.changed.notify_all()

    def close(self) -> None:
        """Let the thread end."""
        with self.changed:
            self.closed = True
            self.ready.clear()
            self.changed.notify_all()

    def _reserve(self, size: int) -> bool:
        with self.changed:
            self.changed.wait_for(lambda: self.closed or not self.held or self.held + size <= self.limit)
            self.held += size
            return not self.closed
