"""``python -m tests.fuzz``: every target in a process of its own, so that one that crashes or hangs is a finding."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from pathlib import Path

from tests.fuzz.driver import Target, all_targets, check_one, fuzz

if sys.platform != "win32":
    import resource

OUT = Path("runs/fuzz")
LAST = "last-input"
RESULT = "result.json"
_GRACE_SECONDS = 20.0


def main() -> int:
    """Run, or run again what was found; 1 where there is a finding."""
    known = all_targets()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", action="append", choices=list(known), help="may be repeated; every one otherwise")
    parser.add_argument("--seconds", type=float, default=60, help="time for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT, help="where findings are written")
    parser.add_argument("--replay", type=Path, help="check this file by the one target given")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = given.target or list(known)
    if given.replay is not None or given.child:
        if len(names) != 1:
            parser.error("--replay needs one --target")
        target = known[names[0]]()
        if given.replay is not None:
            return _replay(target, given.replay.read_bytes())
        return _child(target, given.out / target.name, given.seconds, given.seed)
    found = [name for name in names if _run(known[name], given.out, given.seconds, given.seed)]
    return int(bool(found))


def _run(target: type[Target], out: Path, seconds: float, seed: int) -> bool:
    """Run a target, again with another seed after it ended its process; return whether there is a finding."""
    folder = out / target.name
    folder.mkdir(parents=True, exist_ok=True)
    end, found, executions = time.monotonic() + seconds, False, 0
    while (left := end - time.monotonic()) > 0:
        (folder / LAST).unlink(missing_ok=True)
        (folder / RESULT).unlink(missing_ok=True)
        print(f"{target.name}: seed {seed}, {left:.0f} s", flush=True)
        arguments = ["--child", "--target", target.name, "--seconds", str(left), "--seed", str(seed), "--out", str(out)]
        process = subprocess.Popen([sys.executable, "-m", "tests.fuzz", *arguments])
        code = _wait(process, folder / LAST, target.seconds)
        if (folder / RESULT).is_file():
            result = json.loads((folder / RESULT).read_text())
            executions += result["executions"]
            found |= bool(result["findings"])
            print(f"{target.name}: {executions} inputs, {result['findings']} findings, refused {result['refusals']}")
            return found
        if not (folder / LAST).is_file():
            print(f"{target.name}: cannot be started (status {code})")
            return True
        _keep(target.name, folder, f"the process ended with status {code}", (folder / LAST).read_bytes(), target.suffix)
        found, seed = True, seed + 1
    return found


def _wait(process: subprocess.Popen[bytes], last: Path, seconds: float) -> int | str:
    """Wait for the process; end it where one input takes so long that its own limit of time did not help."""
    while True:
        try:
            return process.wait(1.0)
        except subprocess.TimeoutExpired:
            if last.is_file() and time.time() - last.stat().st_mtime > seconds + _GRACE_SECONDS:
                process.kill()
                process.wait()
                return f"killed after {seconds + _GRACE_SECONDS:g} s"


def _child(target: Target, folder: Path, seconds: float, seed: int) -> int:
    def note(data: bytes) -> None:
        (folder / LAST).write_bytes(data)

    with target.running():
        if target.memory_bytes:
            _limit_memory(target.memory_bytes)
        outcome = fuzz(target, seed=seed, seconds=seconds, before=note)
    for report, data in outcome.findings:
        _keep(target.name, folder, report, data, target.suffix)
    numbers = {"executions": outcome.executions, "findings": len(outcome.findings), "refusals": outcome.refusals}
    (folder / RESULT).write_text(json.dumps(numbers))
    return 0


def _keep(name: str, folder: Path, report: str, data: bytes, suffix: str) -> None:
    number = len(list(folder.glob("*.txt")))
    path = folder / f"{number:03d}{suffix}"
    path.write_bytes(data)
    command = f"python -m tests.fuzz --target {name} --replay {path}"
    (folder / f"{number:03d}.txt").write_text(f"{command}\n\n{report}\n")
    print(f"{name}: {report.strip().splitlines()[-1][:300]}\n    {command}", flush=True)


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
        traceback.print_exc(limit=0)
        sys.exit(130)
