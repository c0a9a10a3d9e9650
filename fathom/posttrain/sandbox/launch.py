"""Starts, bounds and ends the processes of one sandbox: all share one bound and one clock, and end together."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

from fathom.posttrain.sandbox import entry
from fathom.posttrain.sandbox.bubblewrap import bubblewrap_command
from fathom.posttrain.sandbox.cgroup import make_control_group
from fathom.posttrain.sandbox.limits import SandboxLimits
from fathom.posttrain.sandbox.seccomp import seccomp_filter
from fathom.posttrain.sandbox.usage import Bound, Usage
from fathom.posttrain.sandbox.watch import ProcessWatch, children

StopReason = Literal["time", "memory", "output", "processes"]

_START_SECONDS = 30.0
_WATCH_SECONDS = 0.02
_BUSY_SECONDS = 0.01
_END_SECONDS = 2.0
_FEW_PROCESSES = 6
_OWN_PROCESSES = 8
"""How many may be bubblewrap's, two for each start."""
_FIRST_USER = 1 << 30
_NOBODY = 65_534


class Sandbox:
    """One or more isolated Pythons within one bound, ended with the ``with`` block at the latest.

    A control group bounds their memory and number together, or, where none can be made, a thread that counts what
    they use. It ends all of them once they take too much of it, or too long: ``limits.seconds`` from ``start_clock``
    on, and 30 s to start before. ``stopped`` and ``detail`` then say which limit was passed, and ``usage`` what all
    have used. ``unsandboxed`` runs them as this user in temporary folders, with the same limits and nothing else
    between them and this machine.
    """

    def __init__(self, limits: SandboxLimits, *, unsandboxed: bool = False) -> None:
        self.limits = limits
        self.stopped: StopReason | None = None
        self.detail = ""
        self.usage = Usage()
        self._unsandboxed = unsandboxed
        self._processes: list[subprocess.Popen[bytes]] = []
        self._running: list[subprocess.Popen[bytes]] = []
        self._resources = contextlib.ExitStack()
        self._deadline, self._seconds_before = math.inf, 0.0
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._watcher = threading.Thread(target=self._watch, name="fathom-sandbox", daemon=True)

    def __enter__(self) -> Self:
        self._bound: Bound = make_bound(self.limits)
        self._deadline = time.monotonic() + _START_SECONDS
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.kill()
        finally:
            self._ended.set()
            self._watcher.join()
            self._bound.close()
            for process in self._processes:
                process.__exit__(None, None, None)
            self._resources.close()
        if self._failure is not None:
            raise self._failure

    def start(
        self, source: str, *arguments: str, fds: Sequence[int] = (), stdin: int | IO[bytes] = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        """Start an isolated Python on ``source``, whose ``sys.argv[1:]`` are ``arguments``; it inherits ``fds``.

        Its standard output and error are pipes. It is nobody's user, within the limits, before ``source`` is compiled.

        Raises:
            ResourceError: there is no bubblewrap.
        """
        user = None if self._unsandboxed or os.geteuid() != 0 else _unused_user()
        settings = json.dumps({"user": user, "limits": self.limits.of_process()})
        python = [os.path.realpath(sys.executable), "-I", "-S", "-B", "-X", "utf8"]
        command = [*python, "-c", inspect.getsource(entry), settings, source, *arguments]
        folder, environment, filters = "/", {}, []
        if self._unsandboxed:
            temporary = tempfile.TemporaryDirectory(prefix="fathom-", ignore_cleanup_errors=True)
            folder = self._resources.enter_context(temporary)
            environment = {"HOME": folder, "TMPDIR": folder}
        else:
            filters = [prefilled_pipe(seccomp_filter())]
            command = [*bubblewrap_command(self.limits, filters=filters, changes_user=user is not None), *command]
        try:
            with self._lock:
                process = subprocess.Popen(
                    self._bound.joining(command),
                    cwd=folder,
                    env=environment,
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=[*fds, *filters],
                    start_new_session=True,
                )
                self._processes.append(process)
                self._running.append(process)
                self._bound.add(process.pid)
        finally:
            for fd in filters:
                os.close(fd)
        return process

    def start_clock(self) -> None:
        """Count the seconds of ``limits``, of the clock and of the processor, from now on: all started is ready."""
        with self._lock:
            self._seconds_before = self._bound.usage().processor_seconds
            self._deadline = time.monotonic() + self.limits.seconds

    def stop(self, reason: StopReason, detail: str) -> None:
        """End every process because a limit was passed; the first reason stays."""
        with self._lock:
            if self.stopped is None:
                self.stopped, self.detail = reason, detail
            self.kill()

    def kill(self) -> None:
        """End every process, and wait for those that were started here."""
        with self._lock:
            try:
                if self._running:
                    self._look()
            finally:
                while self._running:
                    process = self._running.pop()
                    if not self._unsandboxed:
                        _end_bubblewrap(process)
                    _end_session(process)
                self._bound.kill()
            self._look()

    def _watch(self) -> None:
        """Watch until the end; without a watch nothing may run, and the ``with`` block raises why it failed."""
        try:
            self._watch_limits()
        except BaseException as error:
            self._failure = error
            with contextlib.suppress(type(error)):
                self.stop("time", "it could not be watched")

    def _watch_limits(self) -> None:
        while not self._ended.wait(_BUSY_SECONDS if self.usage.processes > _FEW_PROCESSES else _WATCH_SECONDS):
            self._look()
            if time.monotonic() > self._deadline:
                self.stop("time", f"longer than {self.limits.seconds:g} s")
            elif self.stopped is not None:
                self.kill()

    def _look(self) -> None:
        """Take note of what all have used, and of a limit that was passed."""
        with self._lock:
            usage = self._bound.usage()
            used = max(usage.processor_seconds - self._seconds_before, 0.0)
            most = max(usage.processes, self.usage.processes)
            self.usage = replace(usage, processor_seconds=used, processes=most)
            limits = self.limits
            passed: tuple[StopReason, str] | None = None
            if usage.out_of_memory:
                passed = "memory", f"more than {limits.memory_mib} MiB in all"
            elif used > limits.seconds:
                passed = "time", f"more than {limits.seconds:g} s of processor in all"
            elif usage.processes > _most_tasks(limits):
                passed = "processes", f"more than {limits.processes} processes and threads"
            if passed is not None and self.stopped is None:
                self.stopped, self.detail = passed


def _most_tasks(limits: SandboxLimits) -> int:
    return limits.processes + _OWN_PROCESSES


def make_bound(limits: SandboxLimits) -> Bound:
    """A control group with these limits, or, where none can be made, a watch over them."""
    memory_bytes = limits.memory_mib << 20
    group = make_control_group(memory_bytes, _most_tasks(limits))
    return group or ProcessWatch(memory_bytes=memory_bytes, file_bytes=limits.file_mib << 20)


def prefilled_pipe(data: bytes) -> int:
    """The reading end of a pipe that holds a few bytes and then ends."""
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    return read


def _unused_user() -> int:
    """An unused user id for one process, so that its limit of processes counts its own only."""
    lines = Path("/proc/self/uid_map").read_text().split("\n")
    mapped = [[int(number) for number in line.split()] for line in lines if line.strip()]
    user = _FIRST_USER + secrets.randbelow(_FIRST_USER)
    return user if any(start <= user < start + count for start, _, count in mapped) else _NOBODY


def _end_bubblewrap(process: subprocess.Popen[bytes]) -> None:
    """End bubblewrap's child, which takes everything inside along, so that bubblewrap waits for it and ends.

    Were bubblewrap ended first, whoever inherits its child would have to wait for it.
    """
    if process.poll() is None:
        for pid in children(process.pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """End a process and its session, and wait for it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()
