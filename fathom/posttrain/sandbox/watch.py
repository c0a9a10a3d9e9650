"""Counts what all processes of a sandbox use, from without: the bound where there is no control group.

Counted are the memory of every process (what they share once), /tmp with its inodes, and the buffers that pipes and
sockets may have. Between two looks, 10 to 20 ms, only the limits of each process bind: at worst ``processes`` times
``memory_mib``.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

from fathom.posttrain.sandbox.usage import Usage, read_small

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_INODE_BYTES = 1536  # of tmpfs, with its name
_BUFFER_BYTES = {"pipe": 65_536, "socket": 212_992}  # most that each end holds: larger ones cannot be asked for
_UTIME, _THREADS = 11, 17  # fields of /proc/PID/stat after the name, from 0


class ProcessWatch:
    """Looks at processes and their descendants, which in a sandbox cannot leave the tree."""

    def __init__(self, *, memory_bytes: int, file_bytes: int, proc: Path = Path("/proc")) -> None:
        self._memory_bytes = memory_bytes
        self._file_bytes = file_bytes
        self._proc = proc
        self._roots: list[int] = []
        self._peak = 0
        self._seconds: dict[tuple[int, str], float] = {}

    def joining(self, command: list[str]) -> list[str]:
        """The command itself."""
        return command

    def add(self, pid: int) -> None:
        """Count a process that was started, and all it starts."""
        self._roots.append(pid)

    def usage(self) -> Usage:
        """What all use now; memory is the most of any look."""
        pids = list(self._tree())
        threads, total = 0, 0.0
        for pid in pids:
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = read_small(f"{self._proc}/{pid}/stat").rpartition(")")[2].split()
                threads += int(fields[_THREADS])
                own, waited_for = [sum(map(int, fields[at : at + 2])) / _TICKS for at in (_UTIME, _UTIME + 2)]
                self._seconds[pid, fields[_THREADS + 2]] = own  # by its start: numbers of processes come again
                total += own + waited_for
        memory = self._memory(pids)
        self._peak = max(self._peak, memory)
        return Usage(
            memory_bytes=self._peak,
            processor_seconds=max(total, sum(self._seconds.values())),
            processes=threads,
            out_of_memory=self._peak > self._memory_bytes,
        )

    def kill(self) -> None:
        """Need nothing: the end of bubblewrap takes everything inside it along."""

    def close(self) -> None:
        """Need nothing."""

    def _tree(self) -> Iterator[int]:
        found, waiting = set[int](), list(self._roots)
        while waiting:
            pid = waiting.pop()
            if pid not in found:
                found.add(pid)
                yield pid
                waiting += children(pid, self._proc)

    def _memory(self, pids: list[int]) -> int:
        held = self._files() + self._buffers(pids)
        resident = sum(self._resident(pid) for pid in pids)
        if held + resident <= self._memory_bytes:
            return held + resident
        return held + sum(self._proportional(pid) for pid in pids)  # slower to read: pages by how many share them

    def _resident(self, pid: int) -> int:
        try:
            return int(read_small(f"{self._proc}/{pid}/statm").split()[1]) * _PAGE
        except (OSError, IndexError, ValueError):
            return 0

    def _proportional(self, pid: int) -> int:
        try:
            lines = read_small(f"{self._proc}/{pid}/smaps_rollup").splitlines()
            sizes = {words[0]: int(words[1]) for line in lines[1:] if len(words := line.split()) == 3}
            return (sizes["Pss:"] + sizes.get("SwapPss:", 0)) << 10
        except (OSError, KeyError, ValueError):
            return self._resident(pid)

    def _files(self) -> int:
        """What every /tmp holds; seen through bubblewrap's child, once that has come to its own file system."""
        total = 0
        for root in self._roots:
            for pid in children(root, self._proc):
                with contextlib.suppress(OSError):
                    status = os.statvfs(f"{self._proc}/{pid}/root/tmp")
                    if status.f_blocks * status.f_frsize == self._file_bytes:
                        total += (status.f_blocks - status.f_bfree) * status.f_frsize
                        total += (status.f_files - status.f_ffree) * _INODE_BYTES
        return total

    def _buffers(self, pids: list[int]) -> int:
        seen: set[str] = set()
        for pid in pids:
            folder = f"{self._proc}/{pid}/fd"
            with contextlib.suppress(OSError):
                for name in os.listdir(folder):
                    with contextlib.suppress(OSError):
                        seen.add(os.readlink(f"{folder}/{name}"))
        return sum(_BUFFER_BYTES.get(link.partition(":")[0], 0) for link in seen)


def children(pid: int, proc: Path = Path("/proc")) -> list[int]:
    """The children of a process and its threads."""
    if not _lists_children(proc):
        return [child for child in map(int, filter(str.isdigit, os.listdir(proc))) if _parent(child, proc) == pid]
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"{proc}/{pid}/task"):
            with contextlib.suppress(OSError):
                found += map(int, read_small(f"{proc}/{pid}/task/{task}/children").split())
    return found


@functools.cache
def _lists_children(proc: Path) -> bool:
    """Whether the kernel lists children by parent, which is an option of its build; most have it."""
    return not proc.is_dir() or (proc / "thread-self/children").exists()


def _parent(pid: int, proc: Path) -> int | None:
    try:
        return int(read_small(f"{proc}/{pid}/stat").rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None
