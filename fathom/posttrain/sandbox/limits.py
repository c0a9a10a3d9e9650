"""What the processes of one sandbox may use."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxLimits:
    """What a program may use. ``memory_mib`` is of each of its ``processes`` (threads count), ``file_mib`` of /tmp."""

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
            "RLIMIT_CORE": 0,
        }
