"""Names of the parts of a split GGUF model, as llama.cpp's gguf-split gives them: NAME-00001-of-00009.gguf."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SUFFIX = ".gguf"
MAX_PARTS = 65535
"""The largest ``split.count`` that its 16 bits hold."""
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PartName:
    """A part's name taken apart; ``number`` counts from 1."""

    stem: str
    number: int
    count: int
    suffix: str

    def sibling(self, number: int) -> str:
        """Return the file name of another part of the same model."""
        return f"{self.stem}-{number:05d}-of-{self.count:05d}{self.suffix}"


def is_gguf(path: Path) -> bool:
    """Whether a name ends in .gguf, in any case."""
    return path.suffix.lower() == SUFFIX


def parse_part_name(name: str) -> PartName | None:
    """Take the name of a part apart; None for any other name."""
    found = _PART.fullmatch(name)
    if found is None:
        return None
    number, count = int(found["number"]), int(found["count"])
    return PartName(found["stem"], number, count, found["suffix"]) if 1 <= number <= count else None


def part_path(path: Path, number: int, count: int) -> Path:
    """Return where a part of a model lies that is named ``path`` as a whole: tiny.gguf, tiny-00001-of-00003.gguf."""
    stem, suffix = (path.stem, path.suffix) if is_gguf(path) else (path.name, SUFFIX)
    return path.with_name(PartName(stem, number, count, suffix).sibling(number))


def present_parts(path: Path) -> list[Path]:
    """Return the files of the model that ``path`` is a part of, in their order; any other file alone."""
    name = parse_part_name(path.name)
    if name is None:
        return [path]
    wanted = {name.sibling(number).lower() for number in range(1, name.count + 1)}
    return sorted(file for file in path.parent.iterdir() if file.name.lower() in wanted and file.is_file())


def group_parts(names: Iterable[str]) -> dict[str, list[str]]:
    """Group file names by model: every whole file and every split model, under the name of its first part there is."""
    groups: dict[tuple[str, int], list[str]] = {}
    for name in sorted(names):
        part = parse_part_name(name)
        key = (name, 0) if part is None or part.count == 1 else (part.stem.lower(), part.count)
        groups.setdefault(key, []).append(name)
    return {members[0]: members for members in groups.values()}
