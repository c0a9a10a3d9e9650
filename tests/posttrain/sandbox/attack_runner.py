"""Runs programs in the sandbox and says what it cost this machine and what was left; also as a process of its own.

As a process it reads requests from standard input and writes what it finds, one line of JSON each, so that a test can
run programs as another user.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

from fathom.posttrain.sandbox import SandboxLimits, cgroup, launch, run_program
from fathom.posttrain.sandbox.watch import ProcessWatch


def attack(program: str, tests: str, limits: dict[str, Any], bounds: str) -> dict[str, Any]:
    """Run a program and its tests within ``bounds``; ``left`` names processes, groups and files that stay."""
    namespaces: set[str] = set()
    look = launch.Sandbox._look

    def spying_look(sandbox: launch.Sandbox) -> None:
        look(sandbox)
        for process in sandbox._running:
            namespaces.update(_namespaces(process.pid))

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(tempfile, "tempdir", folder),
        mock.patch.object(launch.Sandbox, "_look", spying_look),
        mock.patch.object(launch, "make_control_group", cgroup.make_control_group if bounds == "cgroup" else _no_group),
    ):
        began = time.monotonic()
        result = asdict(run_program(program, tests, limits=SandboxLimits(**limits)))
        seconds = time.monotonic() - began
        left = [*os.listdir(folder), *_groups_left(), *_soon_gone(namespaces)]
    return {**result, "left": left, "seconds": seconds, "isolated": len(namespaces)}


def _no_group(memory_bytes: int, processes: int) -> None:
    return None


def _namespaces(pid: int) -> set[str]:
    """The PID namespaces below a process, but this one's."""
    watch = ProcessWatch(memory_bytes=1 << 40, file_bytes=0)
    watch.add(pid)
    return {_namespace(each) for each in watch._tree()} - {"", _namespace(os.getpid())}


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _lives_in(pid: int, namespaces: set[str]) -> bool:
    """Whether a process in these namespaces has not ended; whoever inherited it may not have waited for it yet."""
    if _namespace(pid) not in namespaces:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _soon_gone(namespaces: set[str]) -> list[str]:
    """Processes in these namespaces that do not end within a second."""
    found: list[str] = []
    for _ in range(50):
        found = [name for name in os.listdir("/proc") if name.isdigit() and _lives_in(int(name), namespaces)]
        if not found:
            break
        time.sleep(0.02)
    return found


def _groups_left() -> list[str]:
    usable = cgroup.usable_parents()
    parents = set(usable[0].values()) if usable else set[Path]()
    return [str(left) for parent in parents for left in parent.glob(f"{cgroup.group_prefix(os.getpid())}*")]


def main() -> None:
    """Answer requests until the input ends."""
    for line in sys.stdin:
        print(json.dumps(attack(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
