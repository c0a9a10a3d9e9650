"""What the processes of one sandbox may use together, and each."""

from __future__ import annotations

import math
from dataclasses import dataclass

_PENDING_SIGNALS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxLimits:
    """What a program may use, all its processes together.

    ``seconds`` are of the clock and of the processor. ``memory_mib`` includes ``file_mib`` of /tmp; no process may
    have more address space. ``processes`` counts threads, ``open_files`` are of each process.
    """

    seconds: float = 5.0
    memory_mib: int = 512
    output_bytes: int = 1 << 20
    file_mib: int = 16
    processes: int = 16
    open_files: int = 64

    def of_process(self) -> dict[str, int]:
        """The limits as ``resource`` names them."""
        return {
            "RLIMIT_CPU": math.ceil(self.seconds),
            "RLIMIT_AS": self.memory_mib << 20,
            "RLIMIT_FSIZE": self.file_mib << 20,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_STACK": 8 << 20,
            "RLIMIT_SIGPENDING": _PENDING_SIGNALS,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
            "RLIMIT_CORE": 0,
        }
