"""A progress that remembers every report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fathom.progress import NO_METRICS, NullProgress


@dataclass(frozen=True)
class Update:
    done: float
    total: float | None
    unit: str
    phase: str = ""
    metrics: Mapping[str, str] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """The number of a trainer's step."""
        return int(self.metrics["step"].partition("/")[0])


class RecordingProgress(NullProgress):
    """Keeps stages, updates and messages in the order they came; ``on_update`` is called with each update."""

    def __init__(self, on_update: Callable[[Update], None] = lambda update: None) -> None:
        self.stages: list[str] = []
        self.updates: list[Update] = []
        self.messages: list[str] = []
        self._on_update = on_update

    def stage(self, name: str, index: int, total: int) -> None:
        self.stages.append(name)

    def update(
        self, done: float, total: float | None, unit: str, *, phase: str = "", metrics: Mapping[str, str] = NO_METRICS
    ) -> None:
        self.updates.append(Update(done, total, unit, phase, dict(metrics)))
        self._on_update(self.updates[-1])

    def message(self, text: str) -> None:
        self.messages.append(text)
