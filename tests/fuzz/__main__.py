"""``python -m tests.fuzz``: every target in a process of its own, so that one that crashes or hangs is a finding."""

from __future__ import annotations

import argparse
import importlib
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.driver import Outcome, Target, all_targets, check_one, fuzz
from tests.fuzz.findings import LAST, RESULT, Counts, keep
from tests.fuzz.progress import Progress

if sys.platform != "win32":
    import resource

OUT = Path("runs/fuzz")
_GRACE_SECONDS = 20.0
_STOP_SECONDS = 5.0
"""After Ctrl-C the input in progress may take so long."""
_COUNTS_SECONDS = 0.5
INTERRUPTED = 130


def main() -> int:
    """Run, or run again what was found; 1 where there is a finding."""
    given, known = _arguments()
    names = given.target or list(known)
    if given.replay is not None or given.child:
        target = known[names[0]]()
        if given.replay is not None:
            return _replay(target, given.replay.read_bytes())
        return _child(target, given.out / target.name, given.seconds, given.seed)
    progress = Progress(targets=len(names), seconds=given.seconds)
    runs, interrupted = [], False
    for name in names:
        run = _Run(known[name], given.out, given.seconds, given.seed, given.module, progress)
        runs.append(run)
        if not run.run():
            interrupted = True
            break
        progress.next_target()
    print(_table(runs), flush=True)
    if any(run.findings for run in runs):
        print(f"findings lie in {given.out}", flush=True)
        return 1
    return INTERRUPTED if interrupted else 0


def _arguments() -> tuple[argparse.Namespace, dict[str, type[Target]]]:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", action="append", help="may be repeated; every one otherwise")
    parser.add_argument("--seconds", type=float, default=60, help="time for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT, help="where findings are written")
    parser.add_argument("--replay", type=Path, help="check this file by the one target given")
    parser.add_argument("--module", help="take the targets from this module")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.module:
        known = {target.name: target for target in importlib.import_module(given.module).TARGETS}
    else:
        known = all_targets()
    unknown = sorted(set(given.target or ()) - set(known))
    if unknown:
        parser.error(f"no target {unknown[0]}; choose from {', '.join(known)}")
    if (given.replay is not None or given.child) and len(given.target or ()) != 1:
        parser.error("--replay needs one --target")
    return given, known


@dataclass(slots=True)
class _Run:
    """One target for its time, begun again with another seed when an input ended the process."""

    target: type[Target]
    out: Path
    seconds: float
    seed: int
    module: str | None
    progress: Progress
    executions: int = 0
    findings: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    took: float = 0.0

    @property
    def folder(self) -> Path:
        return self.out / self.target.name

    def run(self) -> bool:
        """Run; False where Ctrl-C ended it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        try:
            while (left := begin + self.seconds - time.monotonic()) > 0:
                ended = self._attempt(left)
                if ended is not None:
                    return ended
            return True
        finally:
            self.took = time.monotonic() - begin
            self.progress.clear()

    def _attempt(self, left: float) -> bool | None:
        """Run one process; return None where another one is to follow, else as ``run``."""
        (self.folder / LAST).unlink(missing_ok=True)
        (self.folder / RESULT).unlink(missing_ok=True)
        arguments = ["--child", "--target", self.target.name, "--seconds", str(left), "--seed", str(self.seed)]
        arguments += ["--out", str(self.out), *(["--module", self.module] if self.module else [])]
        process = subprocess.Popen([sys.executable, "-m", "tests.fuzz", *arguments])
        interrupted = False
        try:
            code = self._wait(process)
        except KeyboardInterrupt:
            interrupted, code = True, _stop(process)
        counts = Counts.read(self.folder)
        self.executions += counts.executions
        self.findings += counts.findings
        self.refusals = {name: self.refusals.get(name, 0) + count for name, count in counts.refusals.items()}
        if interrupted or counts.ended:
            return not interrupted
        last = self.folder / LAST
        data = last.read_bytes() if last.is_file() else b""
        self.findings += 1
        if not last.is_file():
            keep(self.target.name, self.folder, f"the target cannot be started (status {code})", b"", ".none")
            return True
        keep(self.target.name, self.folder, f"the process ended with status {code}", data, self.target.suffix)
        self.seed += 1
        return None

    def _wait(self, process: subprocess.Popen[bytes]) -> int | str:
        """Wait for the process; end it where one input takes so long that its own limit of time did not help."""
        while True:
            try:
                return process.wait(1.0)
            except subprocess.TimeoutExpired:
                counts = Counts.read(self.folder)
                findings = self.findings + counts.findings
                self.progress.show(self.target.name, self.executions + counts.executions, findings)
            with suppress(FileNotFoundError):
                age = time.time() - (self.folder / LAST).stat().st_mtime
                if age > self.target.seconds + _GRACE_SECONDS:
                    process.kill()
                    process.wait()
                    return f"killed after {self.target.seconds + _GRACE_SECONDS:g} s"


def _stop(process: subprocess.Popen[bytes]) -> int | str:
    """End a process after its input in progress, or in the midst of one that takes long or at a second Ctrl-C."""
    try:
        if sys.platform != "win32":  # there the console has sent it already
            process.send_signal(signal.SIGINT)
        return process.wait(_STOP_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        return process.wait()


def _table(runs: list[_Run]) -> str:
    width = max(len(run.target.name) for run in runs)
    lines = [f"{'target':{width}}  seconds     inputs   refused  findings"]
    for run in runs:
        numbers = f"{run.took:7.0f}  {run.executions:9,}  {sum(run.refusals.values()):8,}  {run.findings:8}"
        lines.append(f"{run.target.name:{width}}  {numbers}")
    return "\n".join(lines)


def _child(target: Target, folder: Path, seconds: float, seed: int) -> int:
    """Run a target in this process; what it finds is on the disk before the next input is made."""
    stopped = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stopped.set())
    written = 0.0

    def note(data: bytes) -> None:
        (folder / LAST).write_bytes(data)

    def after(outcome: Outcome) -> None:
        nonlocal written
        if time.monotonic() - written > _COUNTS_SECONDS:
            written = time.monotonic()
            _counts(outcome).write(folder)

    def found(report: str, data: bytes, outcome: Outcome) -> None:
        keep(target.name, folder, report, data, target.suffix)
        _counts(outcome).write(folder)

    with target.running():
        if target.memory_bytes:
            _limit_memory(target.memory_bytes)
        outcome = fuzz(
            target, seed=seed, seconds=seconds, before=note, after=after, found=found, stopped=stopped.is_set
        )
    _counts(outcome, ended=True).write(folder)
    return 0


def _counts(outcome: Outcome, *, ended: bool = False) -> Counts:
    return Counts(outcome.executions, len(outcome.findings), dict(outcome.refusals), ended)


def _replay(target: Target, data: bytes) -> int:
    with target.running():
        if target.memory_bytes:
            _limit_memory(target.memory_bytes)
        report = check_one(target, data)
    print(report or "nothing found")
    return int(report is not None)


def _limit_memory(nbytes: int) -> None:
    """Let the process grow by so much and no more, where the system can limit it."""
    if sys.platform != "linux":
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + nbytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
