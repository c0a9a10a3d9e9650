"""Alternate the contestants round by round, so that a drifting machine drifts for all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Backend:
    """``run`` is timed; ``prepare`` goes before it, untimed."""

    run: Callable[[], None]
    prepare: Callable[[], None] = _nothing


def interleave(
    contestants: Mapping[str, Backend | Callable[[], None]],
    *,
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds of each call, by contestant; A B A B ..., warm-up rounds not counted."""
    named = {name: one if isinstance(one, Backend) else Backend(one) for name, one in contestants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in named}
    for turn in range(warmup + rounds):
        for name, contestant in named.items():
            contestant.prepare()
            start = clock()
            contestant.run()
            if turn >= warmup:
                seconds[name].append(clock() - start)
    return seconds


def summary(seconds: Mapping[str, list[float]], *, units: float, peer: str = "transformers") -> dict[str, object]:
    """Medians as units per second, and the median of the pairwise ratios against the peer."""
    return {
        "per_second": {name: round(units / statistics.median(times), 2) for name, times in seconds.items()},
        "times_peer": {
            name: round(statistics.median(p / t for p, t in zip(seconds[peer], times, strict=True)), 3)
            for name, times in seconds.items()
            if name != peer
        },
        "seconds": {name: [round(t, 4) for t in times] for name, times in seconds.items()},
    }
