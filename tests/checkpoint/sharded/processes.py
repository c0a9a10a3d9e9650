"""Several ranks under gloo: one process that imports torch, and forks.

``python -m tests.checkpoint.sharded.processes MODULE:FUNCTION RANKS ROUNDS FOLDER`` runs ``FUNCTION(rank, folder)`` on
every rank, in a folder of its own for each round, and ends with 1 if any rank failed.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401 - DTensor imports it at its first use: once here, not in every rank
import torch.distributed as dist

TIMEOUT = timedelta(seconds=60)


def run_ranks(
    function: Callable[[int, Path], Any], ranks: int, folder: Path, *, rounds: int = 1, failing: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a function of a module on ranks and return what they wrote; they succeed unless ``failing``."""
    name = f"{function.__module__}:{function.__name__}"
    command = [sys.executable, "-m", __name__, name, str(ranks), str(rounds), str(folder)]
    root = Path(__file__).parents[3]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment, cwd=root)
    if not failing:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def main(name: str, ranks: int, rounds: int, folder: Path) -> int:
    """Fork the ranks and wait for all, round after round."""
    module, _, function = name.partition(":")
    work = getattr(importlib.import_module(module), function)
    failed = False
    for number in range(rounds):
        place = folder if rounds == 1 else folder / f"round-{number}"
        place.mkdir(exist_ok=True)
        children = [_fork(work, rank, ranks, place) for rank in range(ranks)]
        codes = [os.waitpid(child, 0)[1] for child in children]
        failed |= any(codes)
    return int(failed)


def _fork(work: Callable[[int, Path], Any], rank: int, ranks: int, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        store = dist.FileStore(str(folder / "rendezvous"), ranks)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=TIMEOUT)
        work(rank, folder)
        code = 0
    except BaseException:
        print(f"rank {rank}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
