"""A GGUF model in one file or in several parts, read as one container.

Parts are as llama.cpp's gguf-split writes them: the first holds the metadata, and each says which of how many it is
(``split.no`` from 0, ``split.count``) and how many tensors all parts hold together (``split.tensors.count``). All
headers are read and compared before a tensor is read; one part is open at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fathom.checkpoint.gguf.container import Container, ReadTensor, TensorInfo
from fathom.checkpoint.gguf.part_names import MAX_PARTS, PartName, parse_part_name
from fathom.errors import CheckpointError
from fathom.logs import listed

SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
SPLIT_KEYS = (SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS)
_LISTED = 4


@dataclass(frozen=True, slots=True)
class SplitContainer:
    """The parts of one model whose headers were read and checked, but none of their tensors; often there is one part.

    ``metadata`` is the first part's without the keys of the split. ``tensors`` are those of all parts, in their order.
    """

    parts: tuple[Container, ...]
    metadata: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    part_of: Mapping[str, int] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> SplitContainer:
        """Read the header of a file, and where it is one part of several, those of all its siblings.

        Raises:
            CheckpointError: a file is damaged, or parts are missing, or they are not of one model.
        """
        given = Container.open(path)
        count = _count(given)
        if count < 2:
            return cls._joined((given,))
        places = _siblings(given, count)
        parts = tuple(given if place == given.path else Container.open(place) for place in places)
        _check_numbers(parts)
        _check_metadata(parts)
        return cls._joined(parts)

    @classmethod
    def _joined(cls, parts: tuple[Container, ...]) -> SplitContainer:
        part_of: dict[str, int] = {}
        for number, part in enumerate(parts):
            for name in part.tensors:
                if name in part_of:
                    raise CheckpointError(
                        f"{part.path}: {name} stands in {parts[part_of[name]].path.name} too; "
                        "the parts are not of one model, download them all from one place"
                    )
                part_of[name] = number
        _check_tensor_count(parts, len(part_of))
        metadata = {key: value for key, value in parts[0].metadata.items() if key not in SPLIT_KEYS}
        tensors = {name: info for part in parts for name, info in part.tensors.items()}
        return cls(parts, metadata, tensors, part_of)

    @property
    def path(self) -> Path:
        """The file, or the first part."""
        return self.parts[0].path

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of all parts."""
        return tuple(part.path for part in self.parts)

    def read(self, name: str) -> Tensor:
        """Return one tensor; types and errors as of ``Container.read``."""
        return self.parts[self.part_of[name]].read(name)

    @contextmanager
    def reading(self) -> Iterator[ReadTensor]:
        """Read many tensors, opening each part as its tensors come; one is open at a time."""
        with ExitStack() as opened:
            current = -1
            read_part: ReadTensor | None = None

            def read(name: str, *, blocks: bool = False) -> Tensor:
                nonlocal current, read_part
                number = self.part_of[name]
                if number != current or read_part is None:
                    opened.close()
                    read_part, current = opened.enter_context(self.parts[number].reading()), number
                return read_part(name, blocks=blocks)

            yield read


def _count(part: Container) -> int:
    """Return how many parts the model has by this one's header."""
    count = part.metadata.get(SPLIT_COUNT, 1)
    if type(count) is not int or not 0 <= count <= MAX_PARTS:
        raise CheckpointError(f"{part.path}: {SPLIT_COUNT} is {count!r}; the file is damaged, download it again")
    return count


def _siblings(given: Container, count: int) -> list[Path]:
    """Return where all parts lie, by the name of the one that was given."""
    path, name = _named(given.path)
    if name is None or name.count != count:
        example = PartName("NAME", 1, count, ".gguf").sibling(1)
        raise CheckpointError(
            f"{given.path}: is one of {count} parts ({SPLIT_COUNT}), but is not named so; "
            f"name all of them as they were published ({example})"
        )
    present = {file.name.lower(): file for file in path.parent.iterdir()}
    wanted = [name.sibling(number) for number in range(1, count + 1)]
    missing = [number for number, part in enumerate(wanted, 1) if not _there(present.get(part.lower()))]
    if missing:
        raise CheckpointError(_missing(path.parent, name, missing))
    return [given.path if part == path.name else present[part.lower()] for part in wanted]


def _named(path: Path) -> tuple[Path, PartName | None]:
    """Take the name apart, or that of the file which a link of another name leads to."""
    name = parse_part_name(path.name)
    if name is None and path.is_symlink():
        target = path.resolve()
        return target, parse_part_name(target.name)
    return path, name


def _there(file: Path | None) -> bool:
    return file is not None and file.is_file()


def _missing(directory: Path, name: PartName, numbers: Sequence[int]) -> str:
    files = [name.sibling(number) for number in numbers]
    remedy = "download all parts into one directory"
    if len(numbers) == 1:
        return f"{directory}: part {numbers[0]} of {name.count}, {files[0]}, is missing; {remedy}"
    return f"{directory}: {len(files)} of {name.count} parts are missing, {listed(files, _LISTED)}; {remedy}"


def _check_numbers(parts: Sequence[Container]) -> None:
    for index, part in enumerate(parts):
        number, count = part.metadata.get(SPLIT_NO), part.metadata.get(SPLIT_COUNT)
        if number != index or type(number) is not int:
            said = f"is {number!r}" if number is not None else "is missing"
            raise CheckpointError(
                f"{part.path}: {SPLIT_NO} {said}, where part {index + 1} has {index}; "
                "it is another part under this name, download it again"
            )
        if count != len(parts):
            raise CheckpointError(
                f"{part.path}: {SPLIT_COUNT} is {count!r}, where the other parts say {len(parts)}; "
                "the parts are not of one model, download them all from one place"
            )


def _check_metadata(parts: Sequence[Container]) -> None:
    """Check that the first part describes the model, and that no other part describes another one."""
    first = parts[0]
    if "general.architecture" not in first.metadata:
        raise CheckpointError(f"{first.path}: lacks general.architecture, which part 1 holds; download it again")
    for part in parts[1:]:
        differing = [
            key
            for key, value in part.metadata.items()
            if key != SPLIT_NO and key in first.metadata and first.metadata[key] != value
        ]
        if differing:
            key = differing[0]
            raise CheckpointError(
                f"{part.path}: {key} is {part.metadata[key]!r:.60}, where {first.path.name} says "
                f"{first.metadata[key]!r:.60}; the parts are not of one model, download them all from one place"
            )


def _check_tensor_count(parts: Sequence[Container], found: int) -> None:
    said = parts[0].metadata.get(SPLIT_TENSORS)
    if len(parts) > 1 and said is not None and said != found:
        raise CheckpointError(
            f"{parts[0].path}: {SPLIT_TENSORS} is {said!r}, but the {len(parts)} parts hold {found}; "
            "the parts are not of one model, download them all from one place"
        )
