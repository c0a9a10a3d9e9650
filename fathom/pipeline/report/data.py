"""What a report shows, as plain values; how a run left it is no concern of the pictures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fathom.locale import ENGLISH, marked, speaking, tr

VALIDATION = ", validation"
"""What the name of a step's curve ends in where it is of what the step holds out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line of a chart: ``y`` over training tokens ``x``, or over steps where a chart says so."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLoads:
    """Load of every expert of one layer over training.

    ``shares[t][e]`` is the share of routed choices that expert e took at record t, times the number of experts: 1 is
    an even load. ``tokens[t]`` is when.
    """

    layer: str
    tokens: Sequence[float]
    shares: Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needle:
    """Needle in a haystack: ``accuracy[i][j]`` and ``gain_bits[i][j]`` at ``lengths[i]`` and ``depths[j]``."""

    lengths: Sequence[int]
    depths: Sequence[float]
    accuracy: Sequence[Sequence[float]]
    gain_bits: Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """By how much accuracy rose over the stage ``before`` on the same problems, with its 95 % interval."""

    before: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """One stage on one task: accuracy over ``n`` problems with its 95 % interval.

    ``tokens`` is the mean length of an answer, ``finished`` the share of answers that ended by themselves. ``more``
    are pass@k and majority@k.
    """

    accuracy: float
    low: float
    high: float
    n: int
    tokens: float
    finished: float
    more: Mapping[str, float] = field(default_factory=dict)
    change: Change | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleAnswer:
    """What a stage answered, thinking included."""

    stage: str
    text: str
    correct: bool
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleProblem:
    """A held-out problem and what each stage made of it."""

    task: str
    question: str
    expected: str
    answers: Sequence[ExampleAnswer]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCurves:
    """How a step learned: axis label -> lines over steps."""

    name: str
    panels: Mapping[str, Sequence[Curve]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A conversation's last question, what stands there as its answer, and what each stage answers."""

    question: str
    expected: str
    answers: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replies:
    """Answers before and after a step, in conversations that were held out or, where none was, learned."""

    step: str
    held_out: bool
    replies: tuple[Reply, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmSpan:
    """What was wrong with a step (one of ``TITLES``), from its line ``first`` to ``last`` of ``steps``."""

    step: str
    title: str
    first: int
    last: int
    steps: int

    def sentence(self) -> str:
        """Say it, in the language that is spoken."""
        said = {"step": self.step, "title": tr(self.title), "first": f"{self.first:,}", "steps": f"{self.steps:,}"}
        if self.last == self.steps:
            return tr("{step}: {title}, from {first} to the end of {steps}", **said)
        return tr("{step}: {title}, from {first} to {last} of {steps}", last=f"{self.last:,}", **said)


RAW_TEXT = marked("raw text")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """Everything a report shows. ``facts`` are label -> value pairs of the model and its training.

    ``origin`` is what the run began with. ``tasks`` is task -> stage -> score, stages in the recipe's order.
    """

    name: str
    facts: Mapping[str, Any]
    stages: Sequence[tuple[str, float]]
    origin: str = RAW_TEXT
    losses: Sequence[Curve] = ()
    bits_over_training: Sequence[Curve] = ()
    bits_per_byte: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    expert_loads: Sequence[ExpertLoads] = ()
    dropped_fraction: float | None = None
    needle: Needle | None = None
    cache_bytes_per_token: Mapping[str, float] = field(default_factory=dict)
    cache_kind: str = ""
    samples: Sequence[tuple[str, str]] = ()
    sft_loss_curves: Sequence[Curve] = ()
    online: Sequence[StepCurves] = ()
    preferences: Sequence[StepCurves] = ()
    tasks: Mapping[str, Mapping[str, TaskScore]] = field(default_factory=dict)
    problems: Sequence[ExampleProblem] = ()
    commands: Sequence[tuple[str, str]] = ()
    alarms: Sequence[AlarmSpan] = ()
    replies: Replies | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what report.json holds."""
        document: dict[str, Any] = {
            "name": self.name,
            "model": dict(self.facts),
            "stages": [{"name": name, "seconds": seconds} for name, seconds in self.stages],
            "bits_per_byte": {source: dict(values) for source, values in self.bits_per_byte.items()},
            "cache_bytes_per_token": dict(self.cache_bytes_per_token),
            "experts": expert_summary(self.expert_loads, self.dropped_fraction),
        }
        if self.alarms:
            with speaking(ENGLISH):
                document["alarms"] = [alarm.sentence() for alarm in self.alarms]
        if self.needle is not None:
            document["needle"] = {
                "lengths": list(self.needle.lengths),
                "depths": list(self.needle.depths),
                "accuracy": [list(row) for row in self.needle.accuracy],
                "gain_bits": [list(row) for row in self.needle.gain_bits],
            }
        if self.tasks:
            document["tasks"] = {task: _stages(scores) for task, scores in self.tasks.items()}
        return document


def _stages(scores: Mapping[str, TaskScore]) -> dict[str, dict[str, Any]]:
    stages: dict[str, dict[str, Any]] = {}
    for stage, score in scores.items():
        stages[stage] = {"accuracy": score.accuracy, "low": score.low, "high": score.high, "n": score.n}
        if score.change is not None:
            stages[stage]["change"] = dataclasses.asdict(score.change)
    return stages


def expert_summary(loads: Sequence[ExpertLoads], dropped_fraction: float | None) -> dict[str, Any]:
    """Summarise the last tenth of training: mean over layers of load entropy and of the busiest expert's load.

    ``load_entropy`` is divided by its greatest value ln E, so that 1 is perfectly even and 0 is one expert only.
    ``max_over_mean`` is the busiest expert's load over the even one.
    """
    if not loads:
        return {}
    layers = {}
    for load in loads:
        last = load.shares[-max(1, len(load.shares) // 10) :]
        mean = [sum(column) / len(last) for column in zip(*last, strict=True)]
        layers[load.layer] = {"load_entropy": _entropy(mean), "max_over_mean": max(mean) * len(mean) / sum(mean)}
    summary: dict[str, Any] = {
        key: sum(layer[key] for layer in layers.values()) / len(layers) for key in ("load_entropy", "max_over_mean")
    }
    if dropped_fraction is not None:
        summary["dropped_fraction"] = dropped_fraction
    return summary | {"layers": layers}


def _entropy(shares: Sequence[float]) -> float:
    total = sum(shares)
    if len(shares) < 2 or total <= 0:
        return 1.0
    return -sum(s / total * math.log(s / total) for s in shares if s > 0) / math.log(len(shares))
