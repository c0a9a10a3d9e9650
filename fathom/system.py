"""What this process may use of the machine: memory and processors, within its control groups, and open files."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

_UNLIMITED = 1 << 60  # cgroup v1 writes a number near 2**63 where there is no limit


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of one version's memory controller, and the line of ``memory.stat`` that counts droppable cache."""

    limit: str
    usage: str
    inactive: str


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


def memory_limit(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this process may use at most: the machine's, or a control group's limit.

    cgroup v1 and v2 are read, and of nested groups the smallest limit counts. ``root`` is where the file system
    begins; tests give another.
    """
    limits = [limit for directory, files in _groups(root) if (limit := _number(directory / files.limit)) is not None]
    return min([_physical_memory(root), *limits])


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this process can still take without swapping.

    That is what the machine has available and what each control group has left below its limit. The page cache that
    the kernel would drop counts as free.
    """
    free = [_free_memory(root)]
    for directory, files in _groups(root):
        limit, usage = _number(directory / files.limit), _number(directory / files.usage)
        if limit is not None:
            free.append(max(limit - max((usage or 0) - _droppable(directory, files), 0), 0))
    return min(free)


def usable_cores(root: Path = Path("/")) -> float:
    """Return how many processors this process may use: those of its affinity, or a control group's share if less."""
    cores = float(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)
    for directory, files in _groups(root):
        if files is _V2:
            quota, _, period = next(iter(_lines(directory / "cpu.max")), "").partition(" ")
            if quota.isdigit() and period.strip().isdigit():
                cores = min(cores, int(quota) / int(period))
    old = root / "sys/fs/cgroup/cpu"
    limit, period_us = _number(old / "cpu.cfs_quota_us"), _number(old / "cpu.cfs_period_us")
    return min(cores, limit / period_us) if limit and period_us else cores


@lru_cache(maxsize=4)
def processor_facts(root: Path = Path("/")) -> Mapping[str, str]:
    """Return what the system says of the first processor, by lower-case name; "model name" is always there."""
    facts: dict[str, str] = {}
    for line in _lines(root / "proc/cpuinfo"):
        name, _, value = line.partition(":")
        facts.setdefault(name.strip().lower(), value.strip())
    known = facts.get("model name") or facts.get("cpu model") or _apple_processor()
    return facts | {"model name": known or platform.processor() or platform.machine()}


def _apple_processor() -> str:
    if sys.platform != "darwin":
        return ""
    import subprocess

    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(command, capture_output=True, timeout=2, encoding="utf-8").stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def release_free_memory() -> None:
    """Give freed memory back to the operating system where the C library keeps it, as glibc does."""
    if sys.platform == "linux":
        import ctypes

        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # another C library
            return


def open_files() -> int:
    """Return how many files and sockets this process has open; 0 where the system does not say."""
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return 0


def raise_file_limit(wanted: int) -> int:
    """Raise this process's limit on open files to ``wanted`` where the system allows; return how many it may open.

    A limit that is higher stays. ``wanted`` is returned where there is none, as on Windows.
    """
    if sys.platform == "win32":
        return wanted
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if target > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        except (OSError, ValueError):  # macOS has a further limit, which getrlimit does not give
            return soft
    return max(soft, target)


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, int]]:
    """Yield each control group this process is in that may have ``controller``, innermost first, and its version.

    The tree of version 2 is yielded whatever controllers it has.
    """
    mounts = list(_mounts(root, controller))
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        kind = 2 if not controllers else 1 if controller in controllers.split(",") else None
        for version, mounted, point in mounts:
            if version != kind:
                continue
            parts = PurePosixPath(path).parts[1:]
            skipped = PurePosixPath(mounted).parts[1:]
            if parts[: len(skipped)] == skipped:  # a container may see only the part of the tree below its own group
                parts = parts[len(skipped) :]
            for depth in range(len(parts), -1, -1):
                yield root.joinpath(point.lstrip("/"), *parts[:depth]), version


def _groups(root: Path) -> Iterator[tuple[Path, _Files]]:
    """Yield the directory of each control group that this process is in and that may limit its memory."""
    for directory, version in control_groups("memory", root):
        yield directory, _V1 if version == 1 else _V2


def _mounts(root: Path, controller: str) -> Iterator[tuple[int, str, str]]:
    """Yield each mounted tree that may have ``controller``: its version, what part of it is mounted, and where."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, described = before.split(), after.split()
        if len(fields) < 5 or len(described) < 3:
            continue
        if described[0] == "cgroup2":
            yield 2, fields[3], fields[4]
        elif described[0] == "cgroup" and controller in described[2].split(","):
            yield 1, fields[3], fields[4]


def _droppable(directory: Path, files: _Files) -> int:
    for line in _lines(directory / "memory.stat"):
        name, _, value = line.partition(" ")
        if name == files.inactive and value.isdigit():
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    """Read a number of bytes; None where there is none, or no limit."""
    text = next(iter(_lines(path)), "").strip()
    return int(text) if text.isdigit() and int(text) < _UNLIMITED else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _meminfo(root: Path, name: str) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _physical_memory(root: Path) -> int:
    return _meminfo(root, "MemTotal") or _of_system(available=False)


def _free_memory(root: Path) -> int:
    return _meminfo(root, "MemAvailable") or _of_system(available=True)


def _of_system(*, available: bool) -> int:
    """Ask the operating system where there is no /proc; what is available is known on Windows only."""
    if sys.platform == "win32":
        import ctypes

        # MEMORYSTATUSEX: two 32-bit fields, then total and available physical memory and five more of 64 bits
        status = (ctypes.c_uint64 * 8)()
        ctypes.cast(status, ctypes.POINTER(ctypes.c_uint32))[0] = ctypes.sizeof(status)
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status[2 if available else 1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
