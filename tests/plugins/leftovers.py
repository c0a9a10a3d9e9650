"""A run that leaves processes, threads or files behind fails, and says which test module left them.

Threads and processes are compared around each test module, when its fixtures are torn down; those that a fixture of
the whole session started are allowed until the session ends. Files are compared around the run: its temporary folder
is one of its own, and must be empty afterwards apart from what pytest and the compilers keep there.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
GRACE_SECONDS = 5.0
KEPT_BY_TOOLS = ("pytest-of-", "torchinductor_", "torch_", "matplotlib-", "node-compile-cache", "playwright")
"""Prefixes of names in the temporary folder that tools keep for the next run."""
SESSION_THREADS = ("asyncio_", "execnet", "fathom-serve", "pytest_timeout")
"""Prefixes of names of threads that belong to test tools, or to servers that live as long as the session."""
SESSION_PROCESSES = ("template_worker.py",)
"""Parts of the command lines of processes that live as long as the one that started them."""


def live_threads() -> set[threading.Thread]:
    """Return the threads that would keep this process from ending."""
    return {thread for thread in threading.enumerate() if not thread.daemon and thread.is_alive()}


def live_processes() -> set[psutil.Process]:
    """Return the children of this process that are alive."""
    return {child for child in psutil.Process().children(recursive=True) if _is_alive(child)}


def _is_alive(process: psutil.Process) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return not any(name in part for part in process.cmdline() for name in SESSION_PROCESSES)
    except psutil.NoSuchProcess:
        return False


def _describe(process: psutil.Process) -> str:
    try:
        return f"process {process.pid}: {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return f"process {process.pid}"


def leftovers(threads: set[threading.Thread], processes: set[psutil.Process], grace_seconds: float) -> list[str]:
    """Return what is alive beyond the given threads and processes, after waiting for what is just ending."""
    deadline = time.monotonic() + grace_seconds
    while True:
        extra_threads = {thread for thread in live_threads() - threads if not thread.name.startswith(SESSION_THREADS)}
        extra_processes = {child for child in live_processes() - processes if _is_alive(child)}
        if not extra_threads and not extra_processes:
            return []
        if time.monotonic() > deadline:
            return [f"thread {thread.name}" for thread in extra_threads] + [_describe(p) for p in extra_processes]
        gc.collect()
        time.sleep(0.05)


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail the last test of a module that leaves threads or processes behind."""
    threads, processes = live_threads(), live_processes()
    yield
    left = leftovers(threads, processes, GRACE_SECONDS)
    assert not left, f"left behind by this module: {'; '.join(left)}"


def working_tree() -> str:
    """Return git's list of changed and untracked files in CI; elsewhere people edit while tests run, so nothing."""
    if "CI" not in os.environ:
        return ""
    try:
        command = ["git", "status", "--porcelain", "--untracked-files=all"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


class Files:
    """Gives a run a temporary folder of its own, and checks it and the working tree afterwards."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fathom-tests-"))
        self.before = working_tree()
        os.environ["TMPDIR"] = str(self.folder)
        tempfile.tempdir = None
        self.found: list[str] = []

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the run where files were left behind."""
        self.found = [f"{self.folder / name}" for name in self._temporary()]
        after = working_tree()
        self.found += [
            f"working tree: {line}" for line in sorted(set(after.split("\n")) - set(self.before.split("\n")))
        ]
        if self.found and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Name the files that were left behind."""
        for line in self.found:
            terminalreporter.write_line(f"left behind: {line}", red=True)

    def pytest_unconfigure(self) -> None:
        """Remove the temporary folder unless it holds something to look at."""
        if not self.found:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _temporary(self) -> list[str]:
        names = sorted(path.name for path in self.folder.iterdir())
        return [name for name in names if not name.startswith(KEPT_BY_TOOLS)]


def pytest_configure(config: pytest.Config) -> None:
    """Watch files from the process that starts the workers."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Files(), "fathom-files")
