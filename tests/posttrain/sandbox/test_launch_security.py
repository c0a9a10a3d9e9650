"""Several processes in one sandbox: one bound of memory and time, one end, and limits set before anything runs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fathom.posttrain.sandbox import Sandbox, SandboxLimits, cgroup, launch, run_program
from fathom.posttrain.sandbox.cgroup import ControlGroup

HOLD = "import time\nheld = bytearray(b'x') * (80 << 20)\nprint('ready', flush=True)\ntime.sleep(100)"
SLEEP = "import time\nprint('ready', flush=True)\ntime.sleep(100)"
BURN = "print('ready', flush=True)\nwhile True: pass"
LISTEN = """
import os, socket, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(b"\\0here")
listener.listen()
open("/tmp/secret", "w").write("x")
print("ready", flush=True)
print(os.getuid(), flush=True)
time.sleep(100)
"""
REACH = """
import os, socket
found = []
for pid in range(2, 4000):
    if pid != os.getpid():
        try: os.kill(pid, 0); found.append(pid)
        except OSError: pass
if os.path.exists("/tmp/secret"): found.append("file")
try: socket.socket(socket.AF_UNIX).connect(b"\\0here"); found.append("socket")
except OSError: pass
print(found, os.getuid(), flush=True)
"""


@pytest.fixture(params=["cgroup", "watched"] if sys.platform == "linux" and cgroup.usable_parents() else ["watched"])
def bounds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, sandbox_works: None) -> str:
    if request.param == "watched":
        monkeypatch.setattr(launch, "make_control_group", lambda *_: None)
    return request.param


def ready(process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def ended(process: subprocess.Popen[bytes], seconds: float = 20.0) -> bool:
    """Whether a process ends, or has ended, without anybody asking for it here."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def test_memory_is_one_bound_of_all_that_are_started(bounds: str) -> None:
    with Sandbox(SandboxLimits(memory_mib=140, seconds=60.0)) as sandbox:
        first = ready(sandbox.start(HOLD))
        assert sandbox.stopped is None
        second = sandbox.start(HOLD)
        assert ended(first)
        assert ended(second)
    assert (sandbox.stopped, sandbox.detail) == ("memory", "more than 140 MiB in all")
    assert sandbox.usage.out_of_memory


def test_processor_time_is_one_bound_of_all_that_are_started(bounds: str) -> None:
    with Sandbox(SandboxLimits(seconds=1.0)) as sandbox:
        processes = [ready(sandbox.start(source)) for source in (BURN, BURN, SLEEP)]
        sandbox.start_clock()
        sandbox._deadline += 60.0  # the clock's limit aside: only the processor's is left
        assert all(map(ended, processes))
    assert (sandbox.stopped, sandbox.detail) == ("time", "more than 1 s of processor in all")


def test_the_clock_is_one_for_all_that_are_started(bounds: str) -> None:
    with Sandbox(SandboxLimits(seconds=0.2)) as sandbox:
        processes = [ready(sandbox.start(SLEEP)) for _ in range(2)]
        sandbox.start_clock()
        assert all(map(ended, processes))
    assert (sandbox.stopped, sandbox.detail) == ("time", "longer than 0.2 s")


def test_what_is_started_after_the_end_ends_too(bounds: str) -> None:
    with Sandbox(SandboxLimits(seconds=60.0)) as sandbox:
        sandbox.stop("output", "too much")
        assert ended(sandbox.start(SLEEP))
    assert (sandbox.stopped, sandbox.detail) == ("output", "too much")


def test_one_may_be_killed_from_another_thread_while_all_are_read(bounds: str) -> None:
    with Sandbox(SandboxLimits(seconds=60.0)) as sandbox:
        processes = [ready(sandbox.start(SLEEP)) for _ in range(3)]
        killers = [threading.Thread(target=sandbox.kill) for _ in range(4)]
        for thread in killers:
            thread.start()
        assert all(map(ended, processes))
        for thread in killers:
            thread.join()


def test_processes_of_one_sandbox_do_not_reach_each_other(bounds: str) -> None:
    """Neither signals, nor files, nor local sockets of one lead to another, and each has a user of its own as root."""
    with Sandbox(SandboxLimits(seconds=60.0)) as sandbox:
        first, second = ready(sandbox.start(LISTEN)), sandbox.start(REACH)
        assert first.stdout is not None
        assert second.stdout is not None
        found, _, user = second.stdout.readline().decode().strip().rpartition(" ")
        assert found == "[]"
        if os.geteuid() == 0:
            assert user != first.stdout.readline().decode().strip()


def test_limits_hold_before_the_source_is_compiled(bounds: str) -> None:
    source = (
        "import json, os, resource\n"
        "print(json.dumps([resource.getrlimit(getattr(resource, name)) for name in ('RLIMIT_AS', 'RLIMIT_NOFILE', "
        "'RLIMIT_NPROC', 'RLIMIT_MEMLOCK', 'RLIMIT_MSGQUEUE', 'RLIMIT_CORE')] + [os.getuid()]), flush=True)"
    )
    with Sandbox(SandboxLimits(memory_mib=200, open_files=33, processes=9)) as sandbox:
        process = sandbox.start(source)
        assert process.stdout is not None
        line = process.stdout.readline().decode()
    assert line.startswith(f"[[{200 << 20}, {200 << 20}], [33, 33], [9, 9], [0, 0], [0, 0], [0, 0], ")
    assert not line.rstrip().endswith(" 0]")


def test_arguments_descriptors_and_input_are_handed_on(bounds: str) -> None:
    read, write = os.pipe()
    source = "import os, sys\nprint(sys.argv[1:], sys.stdin.read())\nos.write(int(sys.argv[1]), b'said')"
    with Sandbox(SandboxLimits(seconds=20.0)) as sandbox, open(os.devnull) as empty:
        process = sandbox.start(source, str(write), "two", fds=[write], stdin=empty.fileno())
        os.close(write)
        assert os.read(read, 10) == b"said"
        assert process.stdout is not None
        assert process.stdout.read() == f"['{write}', 'two'] \n".encode()
        assert process.wait(20.0) == 0
    os.close(read)


def test_unsandboxed_processes_share_one_bound_too(bounds: str) -> None:
    with Sandbox(SandboxLimits(memory_mib=140, seconds=60.0), unsandboxed=True) as sandbox:
        processes = [sandbox.start(HOLD) for _ in range(2)]
        assert all(map(ended, processes))
    assert sandbox.stopped == "memory"


def test_unsandboxed_daemons_end_where_there_is_a_control_group(bounds: str, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    daemon = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n"
        f"    open({str(pid)!r}, 'w').write(str(os.getpid()))\n    time.sleep(20)\n    os._exit(0)\n"
        f"while not os.path.exists({str(pid)!r}): time.sleep(0.01)"
    )
    assert run_program(daemon, unsandboxed=True).passed
    if bounds == "cgroup":
        assert _soon_gone(int(pid.read_text()))
    else:  # as documented: nothing keeps such a daemon
        os.kill(int(pid.read_text()), 9)


def _soon_gone(pid: int) -> bool:
    for _ in range(250):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_a_control_group_bounds_wherever_one_can_be_made(sandbox_works: None) -> None:
    with Sandbox(SandboxLimits()) as sandbox:
        assert isinstance(sandbox._bound, ControlGroup) == (cgroup.usable_parents() is not None)
