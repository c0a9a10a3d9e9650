"""What runs inside the sandbox: a program by itself, or one of the two processes of a program and its tests.

``programs.py`` passes this file's source to an isolated Python; it is standard library only and is imported by nobody
else. It reports on a pipe of its own: ``STARTED`` before anything untrusted runs, then either the pass code, which it
reads only once all has ended well, or one line of JSON saying what went wrong. A program that has tests gets no code.
"""

from __future__ import annotations

import binascii
import contextlib
import importlib.util
import json
import os
import sys
import types
from importlib.machinery import ModuleSpec, SourcelessFileLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STARTED = b"+"
_PASS_CODE_BYTES = 32
_REASON_CHARS = 400


class MemoryLoader(SourcelessFileLoader):
    """Loads modules from byte code that the job holds; packages above them are empty."""

    def __init__(self, modules: dict[str, str]) -> None:
        self._modules = {name: binascii.a2b_base64(code) for name, code in modules.items()}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Find a module of the job, or a package that holds one."""
        if any(module.startswith(f"{name}.") for module in self._modules):
            return ModuleSpec(name, None, is_package=True)
        return importlib.util.spec_from_loader(name, self, is_package=False) if name in self._modules else None

    def get_filename(self, name: str | None = None) -> str:
        """Return a module's name, by which ``get_data`` knows it."""
        return str(name)

    def get_data(self, path: str) -> bytes:
        """Return a module's byte code."""
        return self._modules[path]


def main(role: str, report_fd: int, *fds: int) -> None:
    """Do what the job behind standard input says, as ``alone``, ``program`` or ``tests``."""
    with os.fdopen(0, "rb", closefd=False) as payload:
        job = json.load(payload)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # so that a program reads neither its job nor anything else
    run = _prepared(role, job, *fds[-2:])
    os.write(report_fd, STARTED)
    try:
        run()
    except BaseException as error:  # a program may raise anything, SystemExit included
        kinds = {"MemoryError": "memory", "SystemExit": "exit", "PeerLost": "lost"}
        kind = next((kinds[part.__name__] for part in type(error).__mro__ if part.__name__ in kinds), "raised")
        os.write(report_fd, json.dumps({"kind": kind, "detail": _described(error)}).encode() + b"\n")
        _flush()
        os._exit(1)
    _flush()
    if role != "program":
        os.write(report_fd, os.read(fds[0], _PASS_CODE_BYTES))
    os._exit(0)  # threads and exit handlers that the program left are not waited for


def _flush() -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()


def _prepared(role: str, job: dict[str, Any], *pipes: int) -> Any:
    if role == "alone":
        module = types.ModuleType("answer")
        sys.modules["answer"] = module
        return lambda: exec(compile(job["source"], "<program>", "exec"), module.__dict__)
    sys.meta_path.insert(0, MemoryLoader(job["modules"]))
    if role == "program":
        from fathom.posttrain.verdicts.program_side import run_program

        return lambda: run_program(job["source"], *pipes)
    from fathom.posttrain.verdicts.test_side import run_tests

    return lambda: run_tests(job["source"], *pipes)


def _described(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())
    except BaseException:
        text = ""
    return f"{type(error).__name__}: {text}"[:_REASON_CHARS]


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
