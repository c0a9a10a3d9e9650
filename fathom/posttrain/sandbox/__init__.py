"""Runs untrusted Python inside bubblewrap: no network, and limits on time, memory, processes and output.

The program sees Python's own installation and the system's libraries, read-only, an empty /tmp in memory, and nothing
else: no home, no network, no other process, no environment, and of the kernel only the system calls of an allow-list.
All its processes share one bound of memory, of processes and of processor time: a control group where one can be made,
else a watch from without; what each may use is limited too. Everything dies with it.

Tests run in a process and a sandbox of their own, which call the program with plain values (``posttrain/verdicts``); an
exit before they have ended never passes. ``docs/posttraining.md`` says what a program can still do about its verdict.
"""

from fathom.posttrain.sandbox.bubblewrap import find_bubblewrap
from fathom.posttrain.sandbox.launch import Sandbox
from fathom.posttrain.sandbox.limits import SandboxLimits
from fathom.posttrain.sandbox.process_monitor import ExecutionResult, ExitReason
from fathom.posttrain.sandbox.programs import check_sandbox, run_program

__all__ = [
    "ExecutionResult",
    "ExitReason",
    "Sandbox",
    "SandboxLimits",
    "check_sandbox",
    "find_bubblewrap",
    "run_program",
]
