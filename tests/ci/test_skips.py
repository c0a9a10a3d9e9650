"""In CI a skip fails the run unless it is allowed; everywhere the run says which package brings what was missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins.skips import ALLOWED_FILE, Skip, not_allowed, read_allowed, remedy, summary_lines

ROOT = Path(__file__).parents[2]
SKIPPING = "import pytest\n\ndef test_a():\n    pytest.importorskip('no_such_package')\n"


def run_pytest(folder: Path, ci: str) -> subprocess.CompletedProcess[str]:
    """Run a folder's tests with the plugin, as the suite does."""
    (folder / "test_it.py").write_text(SKIPPING)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.plugins.skips",
        "-p",
        "no:cacheprovider",
        "test_it.py",
    ]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "CI": ci}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_skip_fails_in_ci_and_only_there(tmp_path: Path) -> None:
    inside, outside = run_pytest(tmp_path, "true"), run_pytest(tmp_path, "")
    assert (inside.returncode, outside.returncode) == (1, 0)
    assert "CI allows no skip of test_it.py::test_a" in inside.stdout
    assert "pip install no_such_package" in outside.stdout


def test_allowed_skips_name_tests_that_exist() -> None:
    for pattern, reason in read_allowed(ALLOWED_FILE.read_text(encoding="utf-8")).items():
        assert reason
        assert list(ROOT.glob(pattern.partition("::")[0])), f"{pattern} matches no file"


def test_what_is_allowed_is_matched_by_pattern() -> None:
    skips = [Skip("tests/a/test_b.py::test_c", "why"), Skip("tests/d/test_e.py", "why")]
    assert not_allowed(skips, {"tests/a/*": "reason"}) == skips[1:]


@pytest.mark.parametrize(
    ("reason", "command"),
    [
        ("could not import 'trl': No module named 'trl'", "pip install trl"),
        ("sandbox: bubblewrap is not installed", "apt install bubblewrap"),
        ("no headers of the kernel for x86_64", "apt install linux-libc-dev"),
        ("needs /usr/bin/chromium", "apt install chromium"),
        ("reads /proc", None),
    ],
)
def test_the_package_that_brings_what_is_missing_is_named(reason: str, command: str | None) -> None:
    assert remedy(reason) == command
    assert (command or reason) in summary_lines([Skip("t", reason)])[0]
