"""What the processes of a sandbox use, and the interface of what bounds them together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What all processes of a sandbox use together: bytes of memory, the most so far, and seconds of processor.

    ``processes`` counts threads. ``out_of_memory`` says that the bound was reached and more was asked for.
    """

    memory_bytes: int = 0
    processor_seconds: float = 0.0
    processes: int = 0
    out_of_memory: bool = False


class Bound(Protocol):
    """One bound of memory and processes for all that a sandbox starts."""

    def joining(self, command: list[str]) -> list[str]:
        """The command line that runs ``command`` within the bound."""

    def add(self, pid: int) -> None:
        """Count a process that was started, and all it starts."""

    def usage(self) -> Usage:
        """What all use now."""

    def kill(self) -> None:
        """End every process that is left."""

    def close(self) -> None:
        """Leave nothing behind."""


def read_small(path: str) -> str:
    """A file of the kernel that one read holds; raises ``OSError``. Faster than ``Path.read_text``."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, 65_536).decode(errors="replace")
    finally:
        os.close(file)
