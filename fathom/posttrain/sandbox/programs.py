"""Runs a program and its tests in a sandbox, and says how that ended."""

from __future__ import annotations

import inspect
import json
import os
import secrets
import tempfile

from fathom.posttrain.sandbox import harness
from fathom.posttrain.sandbox.launch import Sandbox, prefilled_pipe
from fathom.posttrain.sandbox.limits import SandboxLimits
from fathom.posttrain.sandbox.process_monitor import ExecutionResult, ProcessMonitor


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
    pass_code = secrets.token_hex(16).encode()
    report_read, report_write = os.pipe()
    given = [prefilled_pipe(pass_code), report_write]
    with (
        open(report_read, "rb", buffering=0) as report,
        tempfile.TemporaryFile() as payload,
        Sandbox(limits or SandboxLimits(), unsandboxed=unsandboxed) as sandbox,
    ):
        payload.write(json.dumps({"program": program, "tests": tests}).encode())
        payload.seek(0)
        try:
            process = sandbox.start(inspect.getsource(harness), *map(str, given), fds=given, stdin=payload)
        finally:
            for fd in given:
                os.close(fd)
        monitor = ProcessMonitor(process, report, sandbox)
        monitor.wait()
        sandbox.kill()
    return monitor.outcome(pass_code)
