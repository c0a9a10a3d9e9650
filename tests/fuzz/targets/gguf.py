"""Broken GGUF files: each must open and read whole, or raise a ``FathomError``.

Files start valid and are then damaged where it hurts: integers at the boundaries of fields become absurd, bits flip,
parts are cut out, doubled, or taken from another file. In ``gguf_split`` the damaged file is the second part of three,
whole ones beside it.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import gguf

from fathom.checkpoint.gguf import GGUFFile
from fathom.checkpoint.gguf.container import Container
from fathom.errors import FathomError
from tests.fuzz import gguf_files as files
from tests.fuzz.driver import Target

BOUNDARY_VALUES = (
    0,
    1,
    2,
    3,
    4,
    5,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
TEXT, LIST = 8, 9


@dataclass(frozen=True, slots=True)
class Seed:
    """A valid file, and the places and widths of the integers and the numbers in its header."""

    content: bytes
    places: tuple[tuple[int, int], ...]


def seeds(directory: Path) -> list[Seed]:
    """Write valid files of several kinds and find the integers in them."""
    paths = [
        files.write(directory / "values.gguf"),
        files.write(directory / "aligned.gguf", alignment=64),
        files.write_model(directory / "llama.gguf", kind=gguf.GGMLQuantizationType.Q4_1),
        files.write_model(directory / "bytes.gguf", kind=gguf.GGMLQuantizationType.Q4_0, tokens="gpt2"),
        files.write_model(directory / "mixtral.gguf", kind=gguf.GGMLQuantizationType.Q5_1, experts=4),
    ]
    contents = [path.read_bytes() for path in paths]
    contents.append(files.build((files.number("a", 4, "I", 7),), (files.entry(),), data=bytes(64)))
    return [Seed(content, tuple(_places(content))) for content in contents]


def split_seeds(directory: Path) -> tuple[list[Seed], Path]:
    """Write a model in three parts; returns its first two as seeds, and the place of the second, beside the others."""
    whole = files.write_model(directory / "whole.gguf", kind=gguf.GGMLQuantizationType.Q8_0)
    (directory / "parts").mkdir()
    first, second, _ = files.split(whole, directory / "parts", 8)
    contents = [first.read_bytes(), second.read_bytes()]
    return [Seed(content, tuple(_places(content))) for content in contents], second


def _places(content: bytes) -> Iterator[tuple[int, int]]:
    """Walk a valid header and yield where each integer or number stands, and its width."""
    tensors, fields = struct.unpack_from("<QQ", content, 8)
    yield from ((4, 4), (8, 8), (16, 8))
    place = 24

    def text() -> Iterator[tuple[int, int]]:
        nonlocal place
        yield place, 8
        place += 8 + struct.unpack_from("<Q", content, place)[0]

    def value(kind: int) -> Iterator[tuple[int, int]]:
        nonlocal place
        if kind == TEXT:
            yield from text()
        elif kind == LIST:
            inner, count = struct.unpack_from("<IQ", content, place)
            yield from ((place, 4), (place + 4, 8))
            place += 12
            for _ in range(count):
                yield from value(inner)
        else:
            yield place, WIDTHS[kind]
            place += WIDTHS[kind]

    for _ in range(fields):
        yield from text()
        yield place, 4
        place += 4
        yield from value(struct.unpack_from("<I", content, place - 4)[0])
    for _ in range(tensors):
        yield from text()
        rank = struct.unpack_from("<I", content, place)[0]
        yield place, 4
        yield from ((place + 4 + 8 * index, 8) for index in range(rank))
        place += 4 + 8 * rank
        yield from ((place, 4), (place + 4, 8))
        place += 12


def mutate(seed: Seed, other: Seed, rng: random.Random) -> bytes:
    """Damage a file in one to four ways."""
    data = bytearray(seed.content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        rng.choice(_MUTATORS)(data, seed, other, rng)
    return bytes(data)


def _absurd(data: bytearray, seed: Seed, other: Seed, rng: random.Random) -> None:
    place, width = rng.choice(seed.places)
    _overwrite(data, place, width, rng.choice((*BOUNDARY_VALUES, len(data), len(data) + 1, rng.randrange(2**20))))


def _nudge(data: bytearray, seed: Seed, other: Seed, rng: random.Random) -> None:
    place, width = rng.choice(seed.places)
    value = int.from_bytes(data[place : place + width], "little")
    _overwrite(data, place, width, value + rng.choice((-32, -2, -1, 1, 2, 31, 32)))


def _overwrite(data: bytearray, place: int, width: int, value: int) -> None:
    if place + width <= len(data):
        data[place : place + width] = (value % 2 ** (8 * width)).to_bytes(width, "little")


def _header_byte(data: bytearray, seed: Seed, other: Seed, rng: random.Random) -> None:
    end = min(seed.places[-1][0] + 8, len(data))
    if end:
        data[rng.randrange(end)] = rng.randrange(256)


def _flip(data: bytearray, seed: Seed, other: Seed, rng: random.Random) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _truncate(data: bytearray, seed: Seed, other: Seed, rng: random.Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _cut(data: bytearray, seed: Seed, other: Seed, rng: random.Random) -> None:
    start = rng.randrange(len(data) + 1)
    del data[start : start + rng.choice((1, 4, 8, 32, rng.randrange(1, 400)))]


def _double(data: bytearray, seed: Seed, other: Seed, rng: random.Random) -> None:
    start = rng.randrange(len(data) + 1)
    data[start:start] = data[start : start + rng.choice((1, 8, 33, rng.randrange(1, 400)))]


def _splice(data: bytearray, seed: Seed, other: Seed, rng: random.Random) -> None:
    """Go on, from the boundary of a field, as another file goes on from one of its own."""
    start, take = rng.choice(seed.places)[0], rng.choice(other.places)[0]
    data[start : start + rng.choice((0, 64, len(data)))] = other.content[take : take + rng.choice((64, 512, 10**9))]


_Way = Callable[[bytearray, Seed, Seed, random.Random], None]
_MUTATORS: tuple[_Way, ...] = (
    _absurd,
    _absurd,
    _absurd,
    _nudge,
    _header_byte,
    _header_byte,
    _flip,
    _truncate,
    _cut,
    _double,
    _splice,
)


def exercise(path: Path) -> None:
    """Do with a file all that a user can."""
    container = Container.open(path)
    with container.reading() as read:
        for name in container.tensors:
            read(name)
    source = GGUFFile.open(path)
    assert source.stored
    assert source.eos_ids is not None
    tokenizer = source.tokenizer()
    if tokenizer is not None:
        tokenizer.decode(tokenizer.encode("The fox\n 天 12"))
    types = source.dtypes
    for name, tensor in source.stream():
        assert tensor.dtype == types[name]


class GGUF(Target):
    """Whole files."""

    name = "gguf"
    suffix = ".gguf"
    short_executions = 1000

    def start(self) -> None:
        self.known, self.path = self.prepared()
        for seed in self.known:  # everything is imported, and warm, before memory is limited
            self.path.write_bytes(seed.content)
            with suppress(FathomError):  # a file that is no model
                exercise(self.path)

    def prepared(self) -> tuple[list[Seed], Path]:
        """Return what is damaged, and where it is written."""
        return seeds(self.folder), self.folder / "fuzzed.gguf"

    def make(self, rng: random.Random) -> bytes:
        return mutate(rng.choice(self.known), rng.choice(self.known), rng)

    def check(self, data: bytes) -> None:
        self.path.write_bytes(data)
        with self.tolerated():
            exercise(self.path)


class SplitGGUF(GGUF):
    """The second part of three."""

    name = "gguf_split"
    short_executions = 400

    def prepared(self) -> tuple[list[Seed], Path]:
        return split_seeds(self.folder)


TARGETS = (GGUF, SplitGGUF)
