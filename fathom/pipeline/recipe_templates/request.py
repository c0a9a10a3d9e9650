"""What a recipe is asked to be about."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import torch

from fathom.errors import SpecError
from fathom.spec import check

SHARE = 0.85
"""Of the time given, what training takes; the rest goes to preparing, measuring and reporting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The data, models and time of a recipe that is to be written to ``out``."""

    out: Path
    hours: float
    device: torch.device
    cache_dir: Path
    text: tuple[Path, ...] = ()
    data: Path | None = None
    problems: Path | None = None
    model: str | None = None
    teacher: str | None = None
    family: str = "deepseek_v2"

    def __post_init__(self) -> None:
        check.positive("--hours", self.hours)
        given = [*(("--text", path) for path in self.text), ("--data", self.data), ("--problems", self.problems)]
        for option, path in given:
            if path is not None and not path.exists():
                raise SpecError(option, f"{path} does not exist", "name a file or folder that does")

    @property
    def name(self) -> str:
        """The recipe's name, of its file."""
        return check.plain_stem(self.out.stem, "recipe")

    @property
    def file(self) -> str:
        """The recipe's file as a command has it."""
        return shlex.quote(str(self.out))

    @property
    def seconds(self) -> float:
        """Seconds that training may take."""
        return SHARE * 3600 * self.hours

    @property
    def time(self) -> str:
        """The time as a comment says it."""
        minutes = round(60 * self.hours)
        if minutes >= 120:
            return f"{self.hours:g} hours"
        return "1 minute" if minutes <= 1 else f"{minutes} minutes"

    def written(self, path: Path) -> str:
        """Return a path as the recipe has it: from its own folder where it lies below, else absolute."""
        base, whole = self.out.resolve().parent, path.resolve()
        return Path(os.path.relpath(whole, base)).as_posix() if whole.is_relative_to(base) else str(whole)

    def required(self, option: str, given: object) -> None:
        """Require an option that this kind of recipe cannot do without."""
        if not given:
            raise SpecError(option, "is missing", f"give {option}, see fathom recipe new --help")
