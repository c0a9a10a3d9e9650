"""The watch that stands in for a control group: what it counts, against what a process is known to hold."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fathom.posttrain.sandbox import SandboxLimits, launch, watch
from fathom.posttrain.sandbox.launch import Sandbox
from fathom.posttrain.sandbox.usage import Usage
from fathom.posttrain.sandbox.watch import ProcessWatch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc elsewhere")
MIB = 1 << 20
READY = "print('ready', flush=True); import time; time.sleep(100)"

Watched = Callable[..., ProcessWatch]


@pytest.fixture
def watched() -> Iterator[Watched]:
    """Starts a program that says when it is ready, and watches it."""
    processes: list[subprocess.Popen[str]] = []

    def start(program: str, memory_mib: int = 1024) -> ProcessWatch:
        line = [sys.executable, "-I", "-S", "-c", f"{program}\n{READY}"]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, start_new_session=True)
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        watching = ProcessWatch(memory_bytes=memory_mib * MIB, file_bytes=4 * MIB)
        watching.add(process.pid)
        return watching

    yield start
    for process in processes:
        launch._end_session(process)
        process.__exit__(None, None, None)


HELD = "held = bytearray(b'x') * (50 << 20)"
FORK = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        {work}
        time.sleep(100)
"""
BURN = "while time.process_time() < 0.3: pass"


def test_memory_of_all_processes_is_counted_and_what_they_share_once(watched: Watched) -> None:
    assert 50 * MIB < watched(HELD).usage().memory_bytes < 90 * MIB
    assert _soon(watched(FORK.format(work=HELD), memory_mib=150), lambda usage: usage.out_of_memory)
    shared = watched(HELD + FORK.format(work="pass"), memory_mib=150).usage()
    assert shared.processes == 5
    assert not shared.out_of_memory
    assert shared.memory_bytes < 150 * MIB


def test_buffers_of_pipes_and_sockets_are_counted_once(watched: Watched) -> None:
    none = watched("").usage().memory_bytes
    some = watched("import socket\nheld = [socket.socketpair() for _ in range(20)]").usage().memory_bytes
    assert 40 * 212_992 <= some - none < 40 * 212_992 + 8 * MIB
    program = "import socket\nheld = [socket.socketpair() for _ in range(100)]" + FORK.format(work="pass")
    shared = watched(program, memory_mib=1).usage()
    assert 200 * 212_992 <= shared.memory_bytes < 200 * 212_992 + 60 * MIB


def test_processor_time_is_counted_of_processes_that_ended_too(watched: Watched) -> None:
    assert watched(f"import time\n{BURN}").usage().processor_seconds >= 0.28
    child = f"import os, time\nif os.fork() == 0:\n    {BURN}\n    os._exit(0)\nos.wait()"
    assert watched(child).usage().processor_seconds >= 0.28


def test_threads_are_counted(watched: Watched) -> None:
    thread = "threading.Thread(target=time.sleep, args=(100,), daemon=True).start()"
    assert watched(f"import threading, time\nfor _ in range(5): {thread}").usage().processes == 6


def test_files_in_memory_and_their_inodes_are_counted(sandbox_works: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "make_control_group", lambda *_: None)
    files = "open('/tmp/a', 'wb').write(bytes(3 << 20))\nfor i in range(2000): open(f'/tmp/{i}', 'w').close()\n"
    with Sandbox(SandboxLimits(file_mib=4)) as sandbox:
        process = sandbox.start(files + READY)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert isinstance(sandbox._bound, ProcessWatch)
        assert sandbox._bound._files() >= 3 * MIB + 2000 * 1024


def test_children_are_found_where_the_kernel_does_not_list_them(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = watched(FORK.format(work="pass"))
    listed = sorted(watching._tree())
    monkeypatch.setattr(watch, "_lists_children", lambda proc: False)
    assert len(listed) == 5
    assert sorted(watching._tree()) == listed


def test_what_has_ended_uses_nothing_more() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    watching = ProcessWatch(memory_bytes=MIB, file_bytes=MIB)
    watching.add(process.pid)
    assert watching.usage() == Usage()


def _soon(watching: ProcessWatch, holds: Callable[[Usage], bool]) -> bool:
    return any(holds(watching.usage()) or time.sleep(0.02) for _ in range(500))


@pytest.mark.parametrize("error", [ProcessLookupError, FileNotFoundError, PermissionError])
def test_what_vanishes_during_a_look_uses_nothing(error: type[OSError], monkeypatch: pytest.MonkeyPatch) -> None:
    watching = ProcessWatch(memory_bytes=MIB, file_bytes=MIB)
    watching.add(os.getpid())

    def vanished(*_: object) -> None:
        raise error

    for name in ("listdir", "open", "readlink", "statvfs"):
        monkeypatch.setattr(os, name, vanished)
    assert watching.usage() == Usage()
    assert watch.children(os.getpid()) == []


def test_a_watch_that_fails_ends_what_it_watched_and_says_why(
    sandbox_works: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FailingWatch(ProcessWatch):
        def usage(self) -> Usage:
            if threading.current_thread().name == "fathom-sandbox":
                raise RuntimeError("no look")
            return super().usage()

    monkeypatch.setattr(launch, "make_bound", lambda limits: FailingWatch(memory_bytes=1 << 40, file_bytes=0))
    sandbox = Sandbox(SandboxLimits())

    def watched_sleep() -> int:
        with sandbox:
            return sandbox.start("import time; time.sleep(100)").wait(30)

    with pytest.raises(RuntimeError, match="no look"):
        watched_sleep()
    assert sandbox.stopped == "time"
    assert all(process.returncode for process in sandbox._processes)
