"""What runs inside the sandbox: a program and its tests.

``programs.py`` passes this file's source to an isolated Python; it is standard library only and is imported by nobody
else. It reports on a pipe of its own: ``STARTED`` before anything untrusted runs, then either the pass
code, which it reads only once the tests have ended, or one line of JSON saying what went wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import types

STARTED = b"+"
_PASS_CODE_BYTES = 32
_REASON_CHARS = 400


def main(code_fd: int, report_fd: int) -> None:
    """Run the program and the tests that stand in the file behind standard input."""
    with os.fdopen(0, "rb", closefd=False) as payload:
        job = json.load(payload)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # so that a program reads neither its tests nor anything else
    os.write(report_fd, STARTED)
    try:
        module = types.ModuleType("answer")
        sys.modules["answer"] = module
        for part in ("program", "tests"):
            exec(compile(job[part], f"<{part}>", "exec"), module.__dict__)
    except BaseException as error:  # a program may raise anything, SystemExit included
        kind = "memory" if isinstance(error, MemoryError) else "exit" if isinstance(error, SystemExit) else "raised"
        os.write(report_fd, json.dumps({"kind": kind, "detail": _described(error)}).encode() + b"\n")
        os._exit(1)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os.write(report_fd, os.read(code_fd, _PASS_CODE_BYTES))
    os._exit(0)  # threads and exit handlers that the program left are not waited for


def _described(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())
    except BaseException:
        text = ""
    return f"{type(error).__name__}: {text}"[:_REASON_CHARS]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
