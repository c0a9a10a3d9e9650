"""The command that looks for inputs that hurt loses nothing that it finds, however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz.progress import Progress
from tests.serve.serving import wait_until
from tests.slow_cases import fast

COMMAND = (sys.executable, "-m", "tests.fuzz", "--module", "tests.fuzz.broken_targets")


def command(out: Path, *names: str, seconds: float) -> list[str]:
    targets = [word for name in names for word in ("--target", name)]
    return [*COMMAND, "--out", str(out), "--seconds", str(seconds), *targets]


@pytest.fixture(autouse=True)
def own_temporaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what killed processes leave within the test's folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_a_finding_gives_1_and_can_be_repeated(tmp_path: Path) -> None:
    run = subprocess.run(
        command(tmp_path, "wrong_once", "fine", seconds=1), capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 1, run.stderr
    assert (tmp_path / "wrong_once" / "000.txt.in").read_bytes().startswith(b"3 ")
    assert "KeyError: 'field'" in (tmp_path / "wrong_once" / "000.txt").read_text()
    assert [(name, int(found)) for name, found in re.findall(r"^(\w+) .* (\d+)$", run.stdout, re.MULTILINE)] == [
        ("wrong_once", 1),
        ("fine", 0),
    ]
    repeated = re.search(r"^    python (.*)$", run.stdout, re.MULTILINE)
    assert repeated
    arguments = [*repeated[1].split(), "--module", "tests.fuzz.broken_targets"]
    again = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)
    assert (again.returncode, "nothing found" in again.stdout) == (1, False)


def test_nothing_found_gives_0(tmp_path: Path) -> None:
    run = subprocess.run(command(tmp_path, "fine", seconds=0.5), capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_run_that_is_killed_has_kept_what_it_found(tmp_path: Path) -> None:
    run = subprocess.Popen(command(tmp_path, "wrong_once", seconds=60), start_new_session=True)
    try:
        assert wait_until((tmp_path / "wrong_once" / "000.txt").is_file, 60)
    finally:
        _kill_group(run)
    assert "KeyError: 'field'" in (tmp_path / "wrong_once" / "000.txt").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
@pytest.mark.parametrize(
    ("name", "status", "kept"), fast([("wrong_once", 1, 1), ("fine", 130, 0)], [("wrong_once", 1, 1)])
)
def test_ctrl_c_ends_in_order_with_what_was_found(tmp_path: Path, name: str, status: int, kept: int) -> None:
    with subprocess.Popen(
        command(tmp_path, name, "ends", seconds=60),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        try:
            waited_for = "000.txt" if kept else "result.json"
            assert wait_until((tmp_path / name / waited_for).is_file, 60)
            run.send_signal(signal.SIGINT)
            out, errors = run.communicate(timeout=60)
        finally:
            if run.poll() is None:
                _kill_group(run)
    assert run.returncode == status, errors
    assert "Traceback" not in errors
    assert re.search(rf"^{name} .* {kept}$", out, re.MULTILINE), out
    assert not (tmp_path / "ends").exists()


@pytest.mark.slow
def test_an_input_that_ends_the_process_is_kept_and_the_target_goes_on(tmp_path: Path) -> None:
    run = subprocess.run(command(tmp_path, "ends", seconds=8), capture_output=True, text=True, timeout=120)
    assert run.returncode == 1, run.stderr
    inputs = [path.read_bytes() for path in sorted((tmp_path / "ends").glob("*.in"))]
    assert inputs
    assert all(data.startswith(b"3 ") for data in inputs)
    assert len(set(inputs)) == len(inputs)
    assert "status 7" in (tmp_path / "ends" / "000.txt").read_text()


def test_the_progress_says_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress = Progress(targets=3, seconds=60)
    assert progress.line("gguf", 0, 0) == "[1/3] gguf: 0 inputs, 0 findings, 3 min left"
    now = 150.0
    assert progress.seconds_left() == 130
    progress.next_target()
    progress.next_target()
    now = 190.0
    assert progress.line("zip", 12_000, 1) == "[3/3] zip: 12,000 inputs, 1 finding, 20 s left"


def _kill_group(run: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """Kill the command and the process it started, as the end of a terminal does."""
    if sys.platform == "win32":
        run.kill()
    else:
        os.killpg(run.pid, signal.SIGKILL)
    run.wait()
