"""Who runs programs in the sandbox, and within which bounds: every test that takes an ``attacker`` meets each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fathom.posttrain.sandbox import cgroup
from tests.posttrain.sandbox import attack_runner

Attack = Callable[..., dict[str, Any]]

ROOT = Path(__file__).parents[3]
LIMITS = {"seconds": 0.7, "memory_mib": 128, "output_bytes": 100_000, "file_mib": 8}
_NOBODY = 65_534
_ORDINARY = pytest.param("watched by an ordinary user", marks=pytest.mark.slow)
_OPEN_FOLDER = "/tmp"  # where another user may read, as it may not in the folder of the tests


def _settings() -> list[Any]:
    """This user with every bound that it has, and an ordinary user where this is root: ``make test-sandbox``."""
    if sys.platform != "linux":
        return ["watched"]
    groups = ["cgroup"] if cgroup.usable_parents() else []
    return [*groups, "watched", *([_ORDINARY] if os.geteuid() == 0 else [])]


@pytest.fixture(scope="module", params=_settings())
def attacker(request: pytest.FixtureRequest, sandbox_works: None) -> Iterator[Attack]:
    """A function that runs a program in the sandbox: ``attack_runner.attack`` with limits that may be changed."""
    if request.param == "watched by an ordinary user":
        with tempfile.TemporaryDirectory(dir=_OPEN_FOLDER) as folder:
            process = _ordinary_user(Path(folder))
            yield lambda program, tests="", **limits: _ask(process, program, tests, limits)
            process.communicate(timeout=30)
            assert process.returncode == 0
    else:
        yield lambda program, tests="", **limits: attack_runner.attack(program, tests, LIMITS | limits, request.param)


def _ask(process: subprocess.Popen[str], program: str, tests: str, limits: dict[str, Any]) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    request = {"program": program, "tests": tests, "limits": LIMITS | limits, "bounds": "watched"}
    print(json.dumps(request), file=process.stdin, flush=True)
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def _ordinary_user(folder: Path) -> subprocess.Popen[str]:
    """The runner as a user without rights, from copies that it may read."""
    shutil.copytree(ROOT / "fathom", folder / "fathom", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(attack_runner.__file__, folder / "attack_runner.py")
    subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
    return subprocess.Popen(
        [_python_for_all(), "-B", str(folder / "attack_runner.py")],
        env={"PYTHONPATH": str(folder), "HOME": "/tmp"},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        user=_NOBODY,
        group=_NOBODY,
        extra_groups=[],
    )


def _python_for_all() -> str:
    """A Python that every user of this machine may run."""
    works = "import sys; sys.exit(sys.version_info < (3, 11))"
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        try:
            if (
                subprocess.run([python, "-c", works], user=_NOBODY, group=_NOBODY, extra_groups=[], cwd="/").returncode
                == 0
            ):
                return python
        except OSError:
            continue
    pytest.skip(f"no user but root may run {sys.executable}, and /usr/bin/python3 is none of 3.11 or later")
