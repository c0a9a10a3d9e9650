"""A control group around all processes of a sandbox: the kernel bounds their memory and number together.

Version 2 is used where an ancestor of this process's group hands the controllers ``memory`` and ``pids`` down and may
be written to, version 1 where this process may write to its own groups (as root). Elsewhere there is none.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from fathom.posttrain.sandbox.usage import Usage, read_small
from fathom.system import control_groups

_REMOVE_SECONDS = 5.0
_JOIN = 'while [ "$1" != -- ]; do echo 0 > "$1" || exit 125; shift; done; shift; exec "$@"'
_PREFIX = "fathom-sandbox-"


class ControlGroup:
    """One new group below each of ``parents``, by controller; in version 2 they are one.

    Raises:
        OSError: a group cannot be made or limited here.
    """

    def __init__(self, parents: dict[str, Path], version: int, *, memory_bytes: int, processes: int) -> None:
        self.version = version
        name = group_prefix(os.getpid()) + secrets.token_hex(8)
        self._folders = {controller: parent / name for controller, parent in parents.items()}
        self._made: list[Path] = []
        self._peak = 0
        try:
            for folder in dict.fromkeys(self._folders.values()):  # once where controllers share one
                folder.mkdir()
                self._made.append(folder)
            self._limit(memory_bytes, processes)
        except OSError:
            self.close()
            raise

    def joining(self, command: list[str]) -> list[str]:
        """The command line that joins the group, then becomes ``command``."""
        files = [str(folder / "cgroup.procs") for folder in self._made]
        return ["/bin/sh", "-c", _JOIN, "sh", *files, "--", *command]

    def add(self, pid: int) -> None:
        """Need nothing: a process that joined counts, and all it starts."""

    def usage(self) -> Usage:
        """What the kernel has counted: all that is charged to the group, the kernel's own memory for it included."""
        memory = self._folders["memory"]
        peak = _number(f"{memory}/{'memory.peak' if self.version == 2 else 'memory.max_usage_in_bytes'}")
        self._peak = max(self._peak, peak or _number(f"{memory}/memory.current"))  # no peak before 5.19
        return Usage(
            memory_bytes=self._peak,
            processor_seconds=self._processor_seconds(),
            processes=_number(f"{self._folders['pids']}/pids.current"),
            out_of_memory=_counter(f"{memory}/{'memory.events' if self.version == 2 else 'memory.oom_control'}") > 0,
        )

    def kill(self) -> None:
        """End every process of the group, and wait until none is left."""
        deadline = time.monotonic() + _REMOVE_SECONDS
        while pids := self._pids():
            try:
                (self._made[0] / "cgroup.kill").write_text("1")
            except OSError:  # version 1, or a kernel before 5.14
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                return
            time.sleep(0.001)

    def close(self) -> None:
        """Remove the group; one whose processes are still ending is tried again."""
        deadline = time.monotonic() + _REMOVE_SECONDS
        while self._made:
            try:
                self._made[-1].rmdir()
                self._made.pop()
            except FileNotFoundError:
                self._made.pop()
            except OSError:
                if time.monotonic() > deadline:
                    return
                time.sleep(0.001)

    def _limit(self, memory_bytes: int, processes: int) -> None:
        memory = self._folders["memory"]
        (self._folders["pids"] / "pids.max").write_text(str(processes))
        if self.version == 2:
            (memory / "memory.max").write_text(str(memory_bytes))
            optional = {"memory.swap.max": 0, "memory.oom.group": 1}
        else:
            (memory / "memory.limit_in_bytes").write_text(str(memory_bytes))
            optional = {"memory.memsw.limit_in_bytes": memory_bytes}  # memory and swap
        for name, value in optional.items():
            with contextlib.suppress(FileNotFoundError):
                file = os.open(memory / name, os.O_WRONLY)
                try:
                    os.write(file, str(value).encode())
                finally:
                    os.close(file)

    def _processor_seconds(self) -> float:
        if self.version == 2:
            return _counter(f"{self._folders['memory']}/cpu.stat", "usage_usec") / 1e6
        return _number(f"{self._folders['cpuacct']}/cpuacct.usage") / 1e9

    def _pids(self) -> set[int]:
        found: set[int] = set()
        for folder in self._made:
            with contextlib.suppress(OSError):
                found |= {int(pid) for pid in (folder / "cgroup.procs").read_text().split()}
        return found


def make_control_group(memory_bytes: int, processes: int) -> ControlGroup | None:
    """A new control group with these limits; None where this process may make none."""
    parents = usable_parents()
    if parents is None:
        return None
    try:
        return ControlGroup(parents[0], parents[1], memory_bytes=memory_bytes, processes=processes)
    except OSError:
        return None


@functools.cache
def usable_parents(root: Path = Path("/")) -> tuple[dict[str, Path], int] | None:
    """Where this process may make groups, by controller, and their version; a process has joined one there."""
    found = next((found for found in possible_parents(root) if _works(*found)), None)
    for parent in set(found[0].values()) if found else ():
        remove_abandoned(parent)
    return found


def group_prefix(pid: int) -> str:
    """How the names of a process's groups begin: with its PID namespace too, since others may see the same tree."""
    return f"{_PREFIX}{os.stat('/proc/self/ns/pid').st_ino}-{pid}-"


def remove_abandoned(parent: Path) -> None:
    """Remove the empty groups of processes that were killed before they could."""
    for folder in parent.glob(f"{_PREFIX}*-*-*"):
        owner = folder.name.split("-")[-2]
        if owner.isdigit() and folder.name.startswith(group_prefix(int(owner))) and not Path("/proc", owner).exists():
            with contextlib.suppress(OSError):
                folder.rmdir()


def possible_parents(root: Path = Path("/")) -> Iterator[tuple[dict[str, Path], int]]:
    """Yield where the files allow groups to be made, by controller, and their version."""
    for folder, version in control_groups("memory", root):
        handed_down = _words(folder / "cgroup.subtree_control")
        if version == 2 and {"memory", "pids"} <= handed_down and _writable(folder):
            yield dict.fromkeys(("memory", "pids"), folder), 2
    parents = {}
    for controller in ("memory", "pids", "cpuacct"):
        own = next((folder for folder, version in control_groups(controller, root) if version == 1), None)
        if own is None or not _writable(own):
            return
        parents[controller] = own
    yield parents, 1


def _works(parents: dict[str, Path], version: int) -> bool:
    """Whether a process can join a new group there."""
    try:
        group = ControlGroup(parents, version, memory_bytes=1 << 28, processes=8)
    except OSError:
        return False
    try:
        ended = subprocess.run(group.joining(["/bin/sh", "-c", ":"]), env={}, capture_output=True, timeout=30.0)
        return ended.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
    finally:
        group.kill()
        group.close()


def _writable(folder: Path) -> bool:
    return all(os.access(path, os.W_OK) for path in (folder, folder / "cgroup.procs"))


def _number(path: str) -> int:
    try:
        return int(read_small(path))
    except (OSError, ValueError):
        return 0


def _counter(path: str, name: str = "oom_kill") -> int:
    """One number of a file whose lines are names and numbers; 0 where there is none."""
    try:
        lines = [line.split() for line in read_small(path).splitlines()]
        return next((int(words[1]) for words in lines if words[:1] == [name]), 0)
    except (OSError, ValueError, IndexError):
        return 0


def _words(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except OSError:
        return set()
