"""Waits for a program's process within limits of time and output, and classifies how it ended."""

from __future__ import annotations

import json
import math
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Literal

from fathom.errors import ResourceError
from fathom.posttrain.sandbox import harness
from fathom.posttrain.sandbox.launch import Sandbox
from fathom.posttrain.sandbox.usage import Usage

ExitReason = Literal["passed", "raised", "exit", "signal", "time", "memory", "output", "processes"]

_REPORTED: dict[str, ExitReason] = {"raised": "raised", "memory": "memory", "exit": "exit"}
_TAIL_BYTES = 4096
_REPORT_BYTES = 4096
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 1.0


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
class MonitoredProcess:
    """A process of the harness, what it wrote and reported, and whether it ended by itself."""

    process: subprocess.Popen[bytes]
    report: IO[bytes]
    ended: bool = False
    pipes: dict[str, _Pipe] = field(
        default_factory=lambda: {
            "out": _Pipe(_TAIL_BYTES),
            "err": _Pipe(_TAIL_BYTES),
            "report": _Pipe(_REPORT_BYTES, keep_head=True),
        }
    )

    @property
    def started(self) -> bool:
        """Whether the harness has begun."""
        return self.pipes["report"].size > 0

    @property
    def said(self) -> bytes:
        """What it reported beyond that it has begun."""
        return self.pipes["report"].kept[len(harness.STARTED) :]

    @property
    def lost(self) -> str:
        """What it reports of the program that it lost; empty where it lost none."""
        kind, detail = self._parsed()
        return detail.partition(": ")[2] if kind == "lost" else ""

    def _parsed(self) -> tuple[str, str]:
        """Kind and detail of the harness's report; empty where what was written is not one."""
        try:
            report = json.loads(self.said.partition(b"\n")[0])  # the first of several processes that failed
            return str(report["kind"]), str(report["detail"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return "", ""

    def register(self, selector: selectors.BaseSelector) -> None:
        """Have a selector watch everything that the process writes."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        for name, pipe in (("out", self.process.stdout), ("err", self.process.stderr), ("report", self.report)):
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, self.pipes[name])

    def check_started(self) -> None:
        """Raise ``ResourceError`` where not even the harness began."""
        if not self.pipes["report"].kept.startswith(harness.STARTED):
            why = " ".join(self.pipes["err"].text.split()) or "it did not start in time"
            raise ResourceError(
                f"sandbox: Python did not start inside it ({why[-300:]}); allow user namespaces to bubblewrap, "
                "or add --unsandboxed on a machine made to be thrown away"
            )

    def outcome(self, pass_code: bytes, sandbox: Sandbox, *others: MonitoredProcess) -> ExecutionResult:
        """Say how this process, whose report decides, and with it a program ended; ``others`` is the program's own.

        Raises:
            ResourceError: the harness of one did not begin, and no program passed a limit meanwhile.
        """
        processes = (*others, self)
        if sandbox.stopped is None or not any(process.started for process in others):
            for process in processes:
                process.check_started()
        reason, detail, code = self._reason(pass_code, sandbox, others)
        return ExecutionResult(
            reason=reason,
            detail=detail,
            exit_code=code,
            stdout="".join(process.pipes["out"].text for process in processes)[-_TAIL_BYTES:],
            stderr="".join(process.pipes["err"].text for process in processes)[-_TAIL_BYTES:],
            usage=sandbox.usage,
        )

    def _reason(
        self, pass_code: bytes, sandbox: Sandbox, others: Sequence[MonitoredProcess]
    ) -> tuple[ExitReason, str, int | None]:
        if self.said == pass_code and sandbox.stopped in (None, "time"):
            return "passed", "", 0
        if sandbox.stopped is not None:
            return sandbox.stopped, sandbox.detail, None
        if self.lost and others:
            return others[0]._failure(sandbox, self.lost)
        return self._failure(sandbox)

    def _failure(self, sandbox: Sandbox, otherwise: str = "") -> tuple[ExitReason, str, int | None]:
        """How a process ended that did not pass; ``otherwise`` where it was still there."""
        code: int | None = self.process.returncode
        kind, detail = self._parsed()
        if kind in _REPORTED:
            return _REPORTED[kind], detail, code
        if otherwise and code == -signal.SIGKILL and not self.ended:
            return "raised", f"the program {otherwise}", None
        if code is not None and code > 128:
            code = 128 - code  # bubblewrap's way of telling a signal
        if code is not None and code < 0:
            if -code == signal.SIGXCPU:
                return "time", f"more than {math.ceil(sandbox.limits.seconds)} s of processor", code
            return "signal", f"ended by signal {-code}", code
        return "exit", f"ended with status {code} before its tests did", code


def wait_for(sandbox: Sandbox, processes: Sequence[MonitoredProcess]) -> None:
    """Read what processes write until the first has ended or a limit is passed; ``sandbox.stopped`` then says which.

    Where the first reports that it lost the second, a moment is left to that to say why.
    """
    first, clock, grace = processes[0], False, 0.0
    with selectors.DefaultSelector() as selector:
        for process in processes:
            process.register(selector)
        while sandbox.stopped is None:
            for process in processes:
                process.ended = process.process.poll() is not None
            over = first.ended and (all(process.ended for process in processes) or time.monotonic() >= grace)
            closed = first.process.stdout not in selector.get_map()  # it is about to end
            events = selector.select(0 if over else _POLL_SECONDS / 20 if closed else _POLL_SECONDS)
            for key, _ in events:
                piece = os.read(key.fd, 65_536)
                key.data.take(piece)
                if not piece:
                    selector.unregister(key.fileobj)
            if not clock and all(process.started for process in processes):
                clock = True
                sandbox.start_clock()
            most = sandbox.limits.output_bytes
            if sum(pipe.size for process in processes for pipe in process.pipes.values()) > most:
                sandbox.stop("output", f"wrote more than {most} bytes")
            elif over and not events:  # what they left behind may hold the pipes open
                break
            elif not grace and first.lost == "ended":
                grace = time.monotonic() + _GRACE_SECONDS
