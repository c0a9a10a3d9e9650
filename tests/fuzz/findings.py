"""What a run leaves on the disk: the findings, each as soon as it is made, and the counts so far."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

LAST = "last-input"
"""The input that is being checked: the finding where the process ends."""
RESULT = "result.json"


@dataclass(frozen=True, slots=True)
class Counts:
    """Inputs and findings so far; ``ended`` once the target has run to its end."""

    executions: int = 0
    findings: int = 0
    refusals: Mapping[str, int] = field(default_factory=dict)
    ended: bool = False

    def write(self, folder: Path) -> None:
        """Replace what was written before, at once for a reader."""
        draft = folder / f"{RESULT}.new"
        draft.write_text(json.dumps(asdict(self)))
        os.replace(draft, folder / RESULT)

    @classmethod
    def read(cls, folder: Path) -> Counts:
        """Return what was written last; no inputs where nothing was."""
        try:
            return cls(**json.loads((folder / RESULT).read_text()))
        except FileNotFoundError:
            return cls()


def keep(target: str, folder: Path, report: str, data: bytes, suffix: str) -> str:
    """Write a finding and its report; return the command that repeats it."""
    number = len(list(folder.glob("*.txt")))
    path = folder / f"{number:03d}{suffix}"
    path.write_bytes(data)
    command = f"python -m tests.fuzz --target {target} --replay {path}"
    (folder / f"{number:03d}.txt").write_text(f"{command}\n\n{report}\n", encoding="utf-8")
    print(f"\n{target}: {report.strip().splitlines()[-1][:300]}\n    {command}", flush=True)
    return command
