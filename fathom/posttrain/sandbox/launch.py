"""Starts, bounds and ends the processes of one sandbox: all of them share one wall clock and end together."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

from fathom.posttrain.sandbox import entry
from fathom.posttrain.sandbox.bubblewrap import bubblewrap_command
from fathom.posttrain.sandbox.limits import SandboxLimits
from fathom.posttrain.sandbox.seccomp import seccomp_filter

StopReason = Literal["time", "memory", "output"]

_START_SECONDS = 30.0
_WATCH_SECONDS = 0.02
_FIRST_USER = 1 << 30
_NOBODY = 65_534


class Sandbox:
    """One or more isolated Pythons within one bound, ended with the ``with`` block at the latest.

    A thread ends all of them once they take too long: ``limits.seconds`` from ``start_clock`` on, and 30 s to start
    before. ``stopped`` and ``detail`` then say which limit was passed. ``unsandboxed`` runs them as this user in
    temporary folders, with the same limits and nothing else between them and this machine.
    """

    def __init__(self, limits: SandboxLimits, *, unsandboxed: bool = False) -> None:
        self.limits = limits
        self.stopped: StopReason | None = None
        self.detail = ""
        self._unsandboxed = unsandboxed
        self._processes: list[subprocess.Popen[bytes]] = []
        self._resources = contextlib.ExitStack()
        self._deadline = 0.0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="fathom-sandbox", daemon=True)

    def __enter__(self) -> Self:
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
            for process in self._processes:
                process.__exit__(None, None, None)
            self._resources.close()

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
            refused = seccomp_filter()
            filters = [] if refused is None else [prefilled_pipe(refused)]
            command = [
                *bubblewrap_command(self.limits, filters=filters, changes_user=user is not None),
                *command,
            ]
        try:
            with self._lock:
                process = subprocess.Popen(
                    command,
                    cwd=folder,
                    env=environment,
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=[*fds, *filters],
                    start_new_session=True,
                )
                self._processes.append(process)
        finally:
            for fd in filters:
                os.close(fd)
        return process

    def start_clock(self) -> None:
        """Count the seconds of ``limits`` from now on: what is started is ready."""
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
            for process in self._processes:
                _kill(process)

    def _watch(self) -> None:
        while not self._ended.wait(_WATCH_SECONDS):
            if time.monotonic() > self._deadline:
                self.stop("time", f"longer than {self.limits.seconds:g} s")
                return


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


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and its session; bubblewrap's own end takes everything inside it along."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()
