"""Runs untrusted Python inside bubblewrap: no network, and limits on time, memory, processes and output.

The program sees Python's own installation and the system's libraries, read-only, an empty /tmp in memory, and nothing
else: no home, no network, no other process, no environment, and of the kernel only the system calls of an allow-list.
All its processes share one bound of memory, of processes and of processor time: a control group where one can be made,
else a watch from without; what each may use is limited too. Everything dies with it. What is not kept out: a program
that searches its own process for the harness can claim to have passed, and an object equal to everything passes every
comparison. An exit before the tests have ended never passes.
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
