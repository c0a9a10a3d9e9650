"""Feed broken GGUF files to the reader: each must open and read whole, or raise a ``FathomError``.

    python -m tests.fuzz.gguf --seconds 300
    python -m tests.fuzz.gguf --seconds 300 --split

Files start valid and are then damaged where it hurts: integers at the boundaries of fields become absurd, bits flip,
parts are cut out, doubled, or taken from another file. Memory is limited to what the process has plus
``MEMORY_LIMIT_BYTES``, and one file may take ``HANG_SECONDS``. Prints executions and findings; the files of findings
are kept. With ``--split`` the damaged file is the second part of three, whole ones beside it.
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gguf

from fathom.checkpoint.gguf import GGUFFile
from fathom.checkpoint.gguf.container import Container
from fathom.errors import FathomError
from tests.fuzz import gguf_files as files

MEMORY_LIMIT_BYTES = 512 * 2**20
HANG_SECONDS = 10
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


@dataclass(slots=True)
class Outcome:
    """What happened: how many files, how many of them opened, why others were refused, and what broke."""

    executions: int = 0
    opened: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[str, bytes]] = field(default_factory=list)


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


def fuzz(
    known: list[Seed], path: Path, *, seed: int, executions: int | None = None, seconds: float | None = None
) -> Outcome:
    """Damage and read files until a count or a time is reached; ``path`` is written over each time."""
    rng, outcome, end = random.Random(seed), Outcome(), time.monotonic() + (seconds or 1e9)
    previous = signal.signal(signal.SIGALRM, _hang)
    try:
        while outcome.executions != executions and time.monotonic() < end:
            data = mutate(rng.choice(known), rng.choice(known), rng)
            path.write_bytes(data)
            signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
            try:
                exercise(path)
                outcome.opened += 1
            except FathomError as error:
                outcome.refusals[type(error).__name__] += 1
                if "\n" in str(error) or "; " not in str(error):
                    outcome.findings.append((f"no remedy, or several lines: {error}", data))
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt | SystemExit):
                    raise
                outcome.findings.append((traceback.format_exc(), data))
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            outcome.executions += 1
    finally:
        signal.signal(signal.SIGALRM, previous)
    return outcome


def _hang(signum: int, frame: object) -> None:
    raise TimeoutError(f"took more than {HANG_SECONDS} s")


def limit_memory() -> None:
    """Let the process grow by ``MEMORY_LIMIT_BYTES`` and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> int:
    """Run for a time and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--split", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        known, path = split_seeds(Path(folder)) if given.split else (seeds(Path(folder)), Path(folder) / "fuzzed.gguf")
        for seed in known[1:] if given.split else known[2:5]:
            path.write_bytes(seed.content)
            exercise(path)  # everything is imported, and warm, before memory is limited
        limit_memory()
        outcome = fuzz(known, path, seed=given.seed, seconds=given.seconds)
    print(f"executions {outcome.executions}, opened {outcome.opened}, refused {dict(outcome.refusals)}")
    print(f"findings {len(outcome.findings)}")
    for number, (report, data) in enumerate(outcome.findings[:100]):
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / f"{number:03d}.gguf").write_bytes(data)
        (given.out / f"{number:03d}.txt").write_text(report)
        print(f"{given.out / f'{number:03d}.gguf'}: {report.strip().splitlines()[-1]}")
    return 1 if outcome.findings else 0


if __name__ == "__main__":
    sys.exit(main())
