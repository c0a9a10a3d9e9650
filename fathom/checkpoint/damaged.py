"""What is said of a file of a checkpoint that cannot be used."""

from __future__ import annotations

from pathlib import Path

from fathom.errors import CheckpointError, shortened


def damaged(path: Path, problem: str) -> CheckpointError:
    """Return the error of a damaged file of a checkpoint, which names the remedy."""
    return CheckpointError(
        f"{path}: {shortened(problem)}; restore the file, or delete {path.parent} to continue from an earlier "
        "checkpoint"
    )
