"""The forecast of a recipe: what each of its steps takes, and what does not fit this machine."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from fathom.errors import SpecError
from fathom.locale import tr
from fathom.plan.count import short_count
from fathom.progress import size
from fathom.system import available_memory

Basis = Literal["measured", "estimated", "unknown"]
PROCESS_BYTES = 400_000_000
"""What Python and PyTorch hold before a model is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepForecast:
    """What one step takes. None where only the run knows; ``basis`` says where ``seconds`` come from.

    ``disk_bytes`` stay when the step is done, ``peak_disk_bytes`` are needed while it runs.
    """

    name: str
    kind: str
    reads: str
    leaves: str
    parameters: int | None = None
    active_parameters: int | None = None
    memory_bytes: int | None = None
    tokens_per_step: int | None = None
    steps: int | None = None
    tokens: int | None = None
    passes: float | None = None
    seconds: float | None = None
    basis: Basis = "unknown"
    disk_bytes: int = 0
    peak_disk_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """All steps that are not done, and what the machine has free for them."""

    recipe: str
    device: str
    steps: tuple[StepForecast, ...]
    free_memory_bytes: int
    free_disk_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Seconds of all steps whose time is known."""
        return sum(step.seconds or 0.0 for step in self.steps)

    @property
    def memory_bytes(self) -> int:
        """Memory of the step that needs most of it, the process included."""
        return PROCESS_BYTES + max((step.memory_bytes or 0 for step in self.steps), default=0)

    @property
    def disk_bytes(self) -> int:
        """Disk that the run holds at its fullest."""
        kept = peak = 0
        for step in self.steps:
            peak = max(peak, kept + max(step.peak_disk_bytes, step.disk_bytes))
            kept += step.disk_bytes
        return peak

    def faults(self) -> list[SpecError]:
        """Return what does not fit, each with its remedy."""
        found = []
        worst = max(self.steps, key=lambda step: step.memory_bytes or 0, default=None)
        if worst is not None and self.memory_bytes > self.free_memory_bytes:
            free = size(self.free_memory_bytes)
            problem = f"needs about {size(self.memory_bytes)} of memory and {free} are free"
            remedy = f"{_smaller(worst.kind)}, take a smaller model, or free memory"
            found.append(SpecError(f"steps.{worst.name}", problem, remedy))
        if self.disk_bytes > self.free_disk_bytes:
            problem = f"the run needs about {size(self.disk_bytes)} of disk and {size(self.free_disk_bytes)} are free"
            remedy = "set checkpoint.keep = 1, free some, or give --out on another disk"
            found.append(SpecError("--out", problem, remedy))
        return found

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        totals = {name: getattr(self, name) for name in ("seconds", "memory_bytes", "disk_bytes")}
        return asdict(self) | totals | {"faults": [str(fault) for fault in self.faults()]}


def _smaller(kind: str) -> str:
    size_field = "policy.micro_batch_tokens" if kind in ("grpo", "distill") else "train.batch.micro_batch_size"
    where = size_field.partition(".")[0]
    return f"lower {size_field}, set {where}.activation_checkpointing = true"


def free_memory(device: torch.device) -> int:
    """Return the bytes that training may still take on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory()


def free_disk(directory: Path) -> int:
    """Return the free bytes of the disk that a folder, which need not exist, will lie on."""
    place = directory.resolve()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def summary(forecast: Forecast, words: Sequence[str] = ()) -> str:
    """Return the forecast in one line; ``words`` come first."""
    largest = max((step for step in forecast.steps if step.parameters), key=lambda s: s.parameters or 0, default=None)
    parts = list(words)
    if largest is not None and largest.parameters and largest.active_parameters:
        total, active = short_count(largest.parameters), short_count(largest.active_parameters)
        parts.append(tr("{total} parameters, {active} active", total=total, active=active))
    tokens = sum(step.tokens or 0 for step in forecast.steps)
    if tokens:
        parts.append(tr("{tokens} tokens of training", tokens=short_count(tokens)))
    parts.append(tr("{size} of memory", size=size(forecast.memory_bytes)))
    parts.append(tr("{size} of disk", size=size(forecast.disk_bytes)))
    return tr(", ").join(parts)
