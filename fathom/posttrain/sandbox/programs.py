"""Runs a program and its tests in a sandbox, and says how that ended."""

from __future__ import annotations

import base64
import contextlib
import inspect
import json
import os
import py_compile
import secrets
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO

from fathom.posttrain import verdicts
from fathom.posttrain.sandbox import harness
from fathom.posttrain.sandbox.launch import Sandbox, prefilled_pipe
from fathom.posttrain.sandbox.limits import SandboxLimits
from fathom.posttrain.sandbox.process_monitor import ExecutionResult, MonitoredProcess, wait_for


def check_sandbox(*, unsandboxed: bool = False) -> None:
    """Raise ``ResourceError`` unless programs can be run here."""
    run_program("", "", unsandboxed=unsandboxed)


def run_program(
    program: str, tests: str = "", *, limits: SandboxLimits | None = None, unsandboxed: bool = False
) -> ExecutionResult:
    """Run a program, then its tests, and say how that ended.

    The tests run in a process and a sandbox of their own. Names that they do not define are the program's, which they
    call with plain values (``fathom.posttrain.verdicts``), so that it cannot pass by reaching into them; the two share
    neither files nor other modules' state. ``unsandboxed`` runs both as this user in temporary folders, with the same
    limits and nothing else between them and this machine; as root, the limit of processes does not bind.

    Raises:
        ResourceError: there is no bubblewrap, or it cannot make a sandbox here.
    """
    pass_code = secrets.token_hex(16).encode()
    with (
        contextlib.ExitStack() as files,
        Sandbox(limits or SandboxLimits(), unsandboxed=unsandboxed) as sandbox,
    ):
        with contextlib.ExitStack() as given:
            code = _given(given, prefilled_pipe(pass_code))
            if not tests:
                processes = [_start(sandbox, files, "alone", program, [code])]
            else:
                asked, asks = _pipe(given)
                answered, answers = _pipe(given)
                processes = [
                    _start(sandbox, files, "tests", tests, [code, answered, asks]),
                    _start(sandbox, files, "program", program, [asked, answers]),
                ]
        wait_for(sandbox, processes)
        sandbox.kill()
    return processes[0].outcome(pass_code, sandbox, *processes[1:])


def _start(
    sandbox: Sandbox, files: contextlib.ExitStack, role: str, source: str, fds: Sequence[int]
) -> MonitoredProcess:
    report, report_write = os.pipe()
    reading: IO[bytes] = files.enter_context(os.fdopen(report, "rb", buffering=0))
    try:
        with tempfile.TemporaryFile() as job:
            job.write(json.dumps({"source": source, "modules": {} if role == "alone" else _modules()}).encode())
            job.seek(0)
            given = [report_write, *fds]
            process = sandbox.start(inspect.getsource(harness), role, *map(str, given), fds=given, stdin=job)
    finally:
        os.close(report_write)
    return MonitoredProcess(process, reading)


def _pipe(given: contextlib.ExitStack) -> tuple[int, int]:
    read, write = os.pipe()
    return _given(given, read), _given(given, write)


def _given(given: contextlib.ExitStack, fd: int) -> int:
    """A descriptor that is closed here once the processes have it."""
    given.callback(os.close, fd)
    return fd


@lru_cache(maxsize=1)
def _modules() -> dict[str, str]:
    """The byte code of every module of ``fathom.posttrain.verdicts``: two processes of every run need it."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for file in sorted(Path(next(iter(verdicts.__path__))).glob("[!_]*.py")):
            compiled = py_compile.compile(str(file), cfile=f"{folder}/{file.stem}.pyc", dfile=file.stem, doraise=True)
            found[f"{verdicts.__name__}.{file.stem}"] = base64.b64encode(Path(str(compiled)).read_bytes()).decode()
    return found
