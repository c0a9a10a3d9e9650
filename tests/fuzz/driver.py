"""Runs targets: makes inputs, checks each under limits of time and memory, and keeps what breaks."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import random
import signal
import sys
import tempfile
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from fathom.errors import FathomError, SpecErrors
from tests.fuzz import targets as _targets

MAX_FINDINGS = 20
"""A run ends after so many."""


class Target(ABC):
    """One reader of what strangers hand over; ``tests/fuzz/__init__.py`` says how one is written."""

    name: ClassVar[str]
    suffix: ClassVar[str] = ".bin"
    """The ending of a kept input's name."""
    seconds: ClassVar[float] = 10.0
    """Time one input may take by the clock."""
    memory_bytes: ClassVar[int] = 512 * 2**20
    """How much the process may grow; ``python -m tests.fuzz`` sets it as a limit of address space. 0 sets none."""
    short_executions: ClassVar[int] = 300
    """Inputs in the normal tests, for about two seconds."""
    folder: Path
    refusals: Counter[str]
    """How many inputs were refused, by the kind of error; ``tolerated`` counts."""

    @abstractmethod
    def make(self, rng: random.Random) -> bytes:
        """Return an input; the same one for the same state of ``rng``."""

    @abstractmethod
    def check(self, data: bytes) -> None:
        """Hand over one input; raise on a finding."""

    def start(self) -> None:  # noqa: B027  most need nothing
        """Prepare; ``self.folder`` is an empty directory."""

    def stop(self) -> None:  # noqa: B027
        """Close what ``start`` made."""

    @contextmanager
    def tolerated(self) -> Iterator[None]:
        """Accept a ``FathomError`` whose message is one line with a remedy, or has such lines for several faults.

        No other exception is accepted.
        """
        try:
            yield
        except FathomError as error:
            self.refusals[type(error).__name__] += 1
            if not _has_lines_with_remedies(error):
                raise AssertionError(f"no remedy, or more lines than faults and examples: {error}") from error

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start and stop, with a folder that is removed afterwards."""
        self.refusals = Counter()
        logging.getLogger("fathom").setLevel(logging.ERROR)  # every damaged input would have its own warning
        with tempfile.TemporaryDirectory(prefix=f"fuzz-{self.name}-") as folder:
            self.folder = Path(folder)
            try:
                self.start()
                yield
            finally:
                self.stop()
                logging.getLogger("fathom").setLevel(logging.NOTSET)


def _has_lines_with_remedies(error: FathomError) -> bool:
    lines = str(error).split("\n")
    if not isinstance(error, SpecErrors):
        return len(lines) == 1 and "; " in lines[0]
    examples = [line for line in lines[1:] if line.startswith("      e.g. ")]
    faults = [line for line in lines[1:] if line not in examples]
    return (
        len(error.faults) > 1
        and len(faults) == len(error.faults)
        and len(examples) == sum(bool(fault.example) for fault in error.faults)
        and all(line.startswith("  ") and "; " in line for line in faults)
    )


@dataclass(slots=True)
class Outcome:
    """How many inputs were checked, why some were refused, and what broke: reports and inputs."""

    executions: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def accepted(self) -> int:
        """How many inputs were neither refused nor findings."""
        return self.executions - self.refusals.total() - len(self.findings)


def all_targets() -> dict[str, type[Target]]:
    """Return every target by its name."""
    found: dict[str, type[Target]] = {}
    for module in pkgutil.iter_modules(_targets.__path__, f"{_targets.__name__}."):
        for target in importlib.import_module(module.name).TARGETS:
            assert target.name not in found, f"two targets are named {target.name}"
            found[target.name] = target
    return dict(sorted(found.items()))


def fuzz(
    target: Target,
    *,
    seed: int,
    executions: int | None = None,
    seconds: float | None = None,
    before: Callable[[bytes], None] = lambda data: None,
    after: Callable[[Outcome], None] = lambda outcome: None,
    found: Callable[[str, bytes, Outcome], None] = lambda report, data, outcome: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Check inputs of a running target until a count, a time or ``MAX_FINDINGS`` is reached, or ``stopped``.

    ``before`` sees every input before it is checked, ``found`` every finding at once, ``after`` what there is after
    each input.
    """
    rng, outcome, end = random.Random(seed), Outcome(refusals=target.refusals), time.monotonic() + (seconds or 1e9)
    while outcome.executions != executions and time.monotonic() < end and len(outcome.findings) < MAX_FINDINGS:
        if stopped():
            break
        data = target.make(rng)
        before(data)
        report = check_one(target, data)
        outcome.executions += 1
        if report is not None:
            outcome.findings.append((report, data))
            found(report, data, outcome)
        after(outcome)
    return outcome


def check_one(target: Target, data: bytes) -> str | None:
    """Check one input; return the report of a finding."""
    try:
        with _time_limit(target.seconds):
            target.check(data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        return traceback.format_exc()
    return None


if sys.platform == "win32":

    @contextmanager
    def _time_limit(seconds: float) -> Iterator[None]:
        """Tell afterwards."""
        begin = time.monotonic()
        yield
        if time.monotonic() - begin > seconds:
            raise TimeoutError(f"took more than {seconds:g} s")

else:

    @contextmanager
    def _time_limit(seconds: float) -> Iterator[None]:
        """Raise ``TimeoutError`` in the midst of what takes too long, or after a call that cannot be interrupted."""

        def hang(signum: int, frame: object) -> None:
            raise TimeoutError(f"took more than {seconds:g} s")

        previous = signal.signal(signal.SIGALRM, hang)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
