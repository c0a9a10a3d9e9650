"""Threads, processes and files that a test module leaves behind are found."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from tests.plugins.leftovers import leftovers, live_processes, live_threads

ROOT = Path(__file__).parents[2]
LEAVING = """
import {module}

def test_it():
    {statement}
"""


def test_a_thread_left_running_is_named() -> None:
    before, end = live_threads(), threading.Event()
    thread = threading.Thread(target=end.wait, name="forgotten")
    thread.start()
    found = leftovers(before, live_processes(), 0.0)
    end.set()
    thread.join()
    assert found == ["thread forgotten"]
    assert leftovers(before, live_processes(), 0.0) == []


def test_a_process_left_running_is_named() -> None:
    before = live_processes()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        found = leftovers(live_threads(), before, 0.0)
        process.kill()
    assert len(found) == 1
    assert str(process.pid) in found[0]


def run_pytest(folder: Path, module: str, statement: str) -> subprocess.CompletedProcess[str]:
    """Run one test with the plugin, as the suite does."""
    (folder / "test_it.py").write_text(LEAVING.format(module=module, statement=statement))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.plugins.leftovers",
        "-p",
        "no:cacheprovider",
        "test_it.py",
    ]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_file_left_in_the_temporary_folder_fails_the_run(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "tempfile", "tempfile.mkstemp(prefix='forgotten-')")
    assert done.returncode == 1
    assert "left behind" in done.stdout
    assert "forgotten-" in done.stdout


def test_a_tidy_run_passes(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "tempfile", "tempfile.TemporaryFile().close()")
    assert done.returncode == 0, done.stdout + done.stderr
