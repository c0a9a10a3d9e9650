"""Runs a module under torchrun, as processes on this machine that talk by gloo."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def torchrun(processes: int, *command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run ``python -m COMMAND`` as so many ranks, one thread each; returns how it ended."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    with tempfile.TemporaryDirectory() as folder:  # torchrun leaves one of its own
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": folder}
        return subprocess.run(
            [*launcher, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
        )
