"""Waits for a program's process within limits of time and output, and classifies how it ended."""

from __future__ import annotations

import json
import math
import os
import selectors
import signal
import subprocess
from dataclasses import dataclass, field
from typing import IO, Literal

from fathom.errors import ResourceError
from fathom.posttrain.sandbox import harness
from fathom.posttrain.sandbox.launch import Sandbox
from fathom.posttrain.sandbox.usage import Usage

ExitReason = Literal["passed", "raised", "exit", "signal", "time", "memory", "output", "processes"]

_TAIL_BYTES = 4096
_REPORT_BYTES = 4096
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionResult:
    """How a program ended, the last 4 KiB of what it wrote, and what all its processes used.

    ``exit_code`` is None where it was killed from without, and minus the signal that ended it otherwise.
    """

    reason: ExitReason
    detail: str = ""
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    usage: Usage = field(default_factory=Usage)

    @property
    def passed(self) -> bool:
        """Whether program and tests ran to their end."""
        return self.reason == "passed"


@dataclass(slots=True)
class _Pipe:
    """The output of one pipe: its size, and its tail or its head."""

    limit: int
    keep_head: bool = False
    kept: bytes = b""
    size: int = 0

    def take(self, piece: bytes) -> None:
        self.size += len(piece)
        both = self.kept + piece
        self.kept = both[: self.limit] if self.keep_head else both[-self.limit :]

    @property
    def text(self) -> str:
        return self.kept.decode(errors="replace")


@dataclass(slots=True)
class ProcessMonitor:
    """Reads a process's pipes until it ends, takes too long or writes too much."""

    process: subprocess.Popen[bytes]
    report: IO[bytes]
    sandbox: Sandbox
    pipes: dict[str, _Pipe] = field(
        default_factory=lambda: {
            "out": _Pipe(_TAIL_BYTES),
            "err": _Pipe(_TAIL_BYTES),
            "report": _Pipe(_REPORT_BYTES, keep_head=True),
        }
    )

    def wait(self) -> None:
        """Read until there is nothing more to read, or a limit is passed; ``sandbox.stopped`` then says which."""
        started = False
        with selectors.DefaultSelector() as selector:
            assert self.process.stdout is not None
            assert self.process.stderr is not None
            for name, pipe in (("out", self.process.stdout), ("err", self.process.stderr), ("report", self.report)):
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, selectors.EVENT_READ, name)
            while selector.get_map() and self.sandbox.stopped is None:
                ended = self.process.poll() is not None
                events = selector.select(0 if ended else _POLL_SECONDS)
                for key, _ in events:
                    piece = os.read(key.fd, 65_536)
                    self.pipes[key.data].take(piece)
                    if not piece:
                        selector.unregister(key.fileobj)
                if self.pipes["report"].size and not started:
                    started = True
                    self.sandbox.start_clock()
                most = self.sandbox.limits.output_bytes
                if sum(pipe.size for pipe in self.pipes.values()) > most:
                    self.sandbox.stop("output", f"wrote more than {most} bytes")
                elif ended and not events:  # what it left behind may hold the pipes open
                    break
        if self.sandbox.stopped is None:
            self.process.wait()

    def outcome(self, pass_code: bytes) -> ExecutionResult:
        """Say how the program ended; ``ResourceError`` where not even the harness began."""
        report = self.pipes["report"].kept
        if not report.startswith(harness.STARTED):
            why = " ".join(self.pipes["err"].text.split()) or "it did not start in time"
            raise ResourceError(
                f"sandbox: Python did not start inside it ({why[-300:]}); allow user namespaces to bubblewrap, "
                "or add --unsandboxed on a machine made to be thrown away"
            )
        said = report[len(harness.STARTED) :]
        reason, detail, code = self._reason(said, pass_code)
        return ExecutionResult(
            reason=reason,
            detail=detail,
            exit_code=code,
            stdout=self.pipes["out"].text,
            stderr=self.pipes["err"].text,
            usage=self.sandbox.usage,
        )

    def _reason(self, said: bytes, pass_code: bytes) -> tuple[ExitReason, str, int | None]:
        code: int | None = self.process.returncode
        if said == pass_code and self.sandbox.stopped in (None, "time"):
            return "passed", "", 0
        if self.sandbox.stopped is not None:
            return self.sandbox.stopped, self.sandbox.detail, None
        raised = _parse_report(said)
        if raised is not None:
            return raised[0], raised[1], code
        if code is not None and code > 128:
            code = 128 - code  # bubblewrap's way of telling a signal
        if code is not None and code < 0:
            if -code == signal.SIGXCPU:
                return "time", f"more than {math.ceil(self.sandbox.limits.seconds)} s of processor", code
            return "signal", f"ended by signal {-code}", code
        return "exit", f"ended with status {code} before its tests did", code


def _parse_report(said: bytes) -> tuple[ExitReason, str] | None:
    """The harness's report; None where what was written is not one."""
    try:
        report = json.loads(said.partition(b"\n")[0])  # the first of several processes that failed
        kinds: dict[str, ExitReason] = {"raised": "raised", "memory": "memory", "exit": "exit"}
        return kinds[report["kind"]], str(report["detail"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
