"""What was skipped and which package brings it; in CI a skip that is not allowed fails the run.

``tests/allowed_skips.toml`` lists the skips that CI accepts, each with its reason.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ALLOWED_FILE = Path(__file__).parents[1] / "allowed_skips.toml"
_REMEDIES = (
    (re.compile(r"could not import '([\w.]+)'"), "pip install {0}"),
    (re.compile(r"bubblewrap", re.IGNORECASE), "apt install bubblewrap"),
    (re.compile(r"chromium", re.IGNORECASE), "apt install chromium"),
    (re.compile(r"C\+\+ compiler"), "apt install g++"),
    (re.compile(r"qemu-user"), "apt install qemu-user"),
    (re.compile(r"native library cannot be used"), "make native"),
    (re.compile(r"headers of the kernel"), "apt install linux-libc-dev"),
    (re.compile(r"rl extra"), "pip install -e '.[rl]'"),
    (re.compile(r"playwright"), "pip install playwright"),
)


@dataclass(frozen=True, slots=True)
class Skip:
    """One skipped test, or a module skipped as a whole."""

    test: str
    reason: str


def remedy(reason: str) -> str | None:
    """Return the command that brings what a skipped test misses; None where nothing installable is named."""
    for pattern, command in _REMEDIES:
        found = pattern.search(reason)
        if found is not None:
            return command.format(*found.groups())
    return None


def read_allowed(text: str) -> dict[str, str]:
    """Return the allowed skips as glob pattern of test ids to reason."""
    return {entry["test"]: entry["reason"] for entry in tomllib.loads(text).get("skips", [])}


def not_allowed(skips: Iterable[Skip], allowed: Mapping[str, str]) -> list[Skip]:
    """Return the skips that no pattern of ``allowed`` matches."""
    return [skip for skip in skips if not any(fnmatch(skip.test, pattern) for pattern in allowed)]


def summary_lines(skips: Sequence[Skip]) -> list[str]:
    """Return one line a reason: how many tests it skipped, and what brings what they miss."""
    by_reason: dict[str, int] = defaultdict(int)
    for skip in skips:
        by_reason[skip.reason] += 1
    lines = []
    for reason, count in sorted(by_reason.items(), key=lambda item: -item[1]):
        command = remedy(reason)
        lines.append(f"skipped {count}: {reason}" + (f" -> {command}" if command else ""))
    return lines


class SkipReport:
    """Collects the skips of a run, of all workers, on the process that reports."""

    def __init__(self) -> None:
        self.skips: list[Skip] = []

    def _take(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
            self.skips.append(Skip(report.nodeid, report.longrepr[2].removeprefix("Skipped: ")))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect a skipped test."""
        self._take(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Collect a module that was skipped as a whole."""
        self._take(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the run in CI where a skip is not allowed."""
        if self._refused() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what was skipped and which package brings it."""
        for line in summary_lines(self.skips):
            terminalreporter.write_line(line)
        for skip in self._refused():
            terminalreporter.write_line(f"CI allows no skip of {skip.test} ({skip.reason})", red=True)

    def _refused(self) -> list[Skip]:
        if os.environ.get("CI", "").lower() not in ("1", "true"):
            return []
        return not_allowed(dict.fromkeys(self.skips), read_allowed(ALLOWED_FILE.read_text(encoding="utf-8")))


def pytest_configure(config: pytest.Config) -> None:
    """Report skips from the process that gathers all workers' results."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipReport(), "fathom-skips")
