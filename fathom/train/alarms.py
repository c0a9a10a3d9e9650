"""Alarms: what a stage's own metrics say is wrong with it, said once on the console, and again at its end.

A check is a pure function of the stage's lines of metrics, oldest first; it returns an ``Alarm`` while something holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pvariance
from types import MappingProxyType
from typing import Any

from fathom.locale import marked

Lines = Sequence[Mapping[str, Any]]

HEAD, RECENT = 4, 200
"""Lines that are kept: the first of the stage, and the last."""
WINDOW, IN_A_ROW = 8, 3
LEAST_LINES = 16
"""A loss is called constant after so many logged steps."""
CONSTANT = 0.005
"""A loss has not fallen where it fell by less than this share of it for certain (two standard errors)."""
RISE, RISE_NATS, DEVIATIONS = 0.2, 0.3, 3.0
"""A loss diverges where its mean over a window exceeds the best one by this share of it and these nats, and by so many
standard deviations within the windows."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """What is wrong: its name in the metrics, a sentence with figure and remedy, and the parts that it is ``about``."""

    name: str
    text: str
    about: tuple[str, ...] = ()


Check = Callable[[Lines], Alarm | None]


def constant_loss(lines: Lines) -> Alarm | None:
    """The loss is where it began, by more certainty than its noise allows to doubt, at a learning rate above 0."""
    losses = _values(lines, "lm_loss")
    if len(losses) < LEAST_LINES or not all(line.get("lr") for line in lines[-WINDOW:]):
        return None
    head, tail = losses[:HEAD], losses[len(losses) // 2 :]
    fell = fmean(head) - fmean(tail)
    error = math.sqrt(pvariance(head) / len(head) + pvariance(tail) / len(tail))
    if abs(fell) + 2 * error >= CONSTANT * abs(fmean(head)):
        return None
    return Alarm(
        "constant_loss",
        f"the loss does not fall: {fmean(head):.4g} at first, {fmean(tail):.4g} over the last {len(tail)} logged steps"
        "; raise optimizer.lr, shorten the warm-up, or check that the data are what you mean",
    )


def diverging_loss(lines: Lines) -> Alarm | None:
    """The loss of the last logged steps lies far above what it was."""
    losses = _values(lines, "lm_loss")
    if len(losses) < 2 * WINDOW:
        return None
    means = [fmean(losses[end - WINDOW : end]) for end in range(WINDOW, len(losses) - WINDOW + 1)]
    best = min(range(len(means)), key=lambda index: means[index])
    now, then = losses[-WINDOW:], losses[best : best + WINDOW]
    rise = fmean(now) - means[best]
    deviation = math.sqrt((pvariance(now) + pvariance(then)) / 2)
    if rise <= RISE * abs(means[best]) + RISE_NATS or rise <= DEVIATIONS * deviation:
        return None
    return Alarm(
        "diverging_loss",
        f"the loss rises: {fmean(now):.3g} over the last {WINDOW} logged steps, {means[best]:.3g} at best; lower "
        "optimizer.lr or lengthen the warm-up, at a resume (--allow-changes) or in a new run",
    )


def worse_than_guessing(vocab_size: int) -> Check:
    """Return the check that the loss does not lie far above ln ``vocab_size``, that of taking all tokens for equal."""
    guessing = math.log(vocab_size)

    def check(lines: Lines) -> Alarm | None:
        if not _lasts(lines, "lm_loss", lambda loss: loss > (1 + RISE) * guessing + RISE_NATS):
            return None
        return Alarm(
            "worse_than_guessing",
            f"the loss is {lines[-1]['lm_loss']:.3g}, above the {guessing:.3g} of guessing each of {vocab_size:,} "
            "tokens alike; lower optimizer.lr or lengthen the warm-up, in a new run",
        )

    return check


def zero_rate(lines: Lines) -> Alarm | None:
    """The learning rate is 0."""
    if not _lasts(lines, "lr", lambda rate: rate == 0):
        return None
    return Alarm("zero_rate", "the learning rate is 0, so nothing is learned; raise schedule.final or optimizer.lr")


def zero_gradient(lines: Lines) -> Alarm | None:
    """No weight has a gradient."""
    if not _lasts(lines, "grad_norm", lambda norm: norm == 0):
        return None
    return Alarm(
        "zero_gradient",
        f"the gradient was 0 in the last {IN_A_ROW} logged steps, so nothing is learned; freeze less, or give data "
        "with tokens that count in the loss",
    )


def collapsed_routing(lines: Lines) -> Alarm | None:
    """A few experts of a layer do the work of all, and not for the moment that routers take to find their balance."""
    recent = [line.get("collapsed_layers") or () for line in lines[-IN_A_ROW:]]
    layers = [layer for layer in recent[-1] if all(layer in each for each in recent)] if len(recent) == IN_A_ROW else []
    if not layers:
        return None
    line = lines[-1]
    return Alarm(
        "collapsed_routing",
        f"few experts do all the work in {', '.join(layers)} (router collapse); lower optimizer.lr at a resume "
        "(--allow-changes), or raise the losses or bias_update_rate of router.balance in a new run; the load's entropy "
        f"is {line['load_entropy_min']:.2f} of 1, the busiest expert has {line['load_max_over_mean']:.1f} times its "
        "share",
        tuple(layers),
    )


def no_signal(lines: Lines) -> Alarm | None:
    """In the last rollouts all answers of each group were rewarded alike."""
    if not _lasts(lines, "zero_variance", lambda share: share == 1):
        return None
    return Alarm(
        "no_signal",
        f"in the last {IN_A_ROW} rollouts all answers to a problem had the same reward "
        f"({lines[-1].get('reward', 0):.3g} on average), so none is better than another and nothing is learned; take "
        "problems that the model solves now and then, raise rollout.group_size or rollout.temperature, or add a reward "
        "that tells answers apart",
    )


def cut_off(lines: Lines) -> Alarm | None:
    """In the last rollouts every answer was cut off."""
    if not _lasts(lines, "finished", lambda share: share == 0):
        return None
    return Alarm(
        "cut_off",
        f"every answer of the last {IN_A_ROW} rollouts was cut off at its limit of tokens; raise rollout.max_tokens, "
        "or begin with a model that ends its answers, one fine-tuned on examples",
    )


TRAINING: tuple[Check, ...] = (constant_loss, diverging_loss, zero_rate, zero_gradient, collapsed_routing)
ROLLOUTS: tuple[Check, ...] = (zero_rate, no_signal, cut_off)

TITLES: Mapping[str, str] = MappingProxyType(
    {
        "constant_loss": marked("the loss did not fall"),
        "diverging_loss": marked("the loss rose"),
        "worse_than_guessing": marked("the loss was above that of guessing"),
        "zero_rate": marked("the learning rate was 0"),
        "zero_gradient": marked("the gradient was 0"),
        "collapsed_routing": marked("few experts did all the work"),
        "no_signal": marked("all answers to a problem were rewarded alike"),
        "cut_off": marked("every answer was cut off"),
    }
)
"""Name of an alarm -> what it means, for reports."""


class Alarms:
    """The checks of one stage: notes each alarm when it comes first, and at the end those that still hold.

    ``before`` are the lines that the stage wrote before it was resumed; ``unit`` is what a line is numbered by.
    """

    def __init__(
        self,
        checks: Sequence[Check],
        *,
        note: Callable[[str], None],
        before: Iterable[Mapping[str, Any]] = (),
        unit: str = "step",
    ) -> None:
        self._checks, self._note, self._unit = tuple(checks), note, unit
        self._lines: list[Mapping[str, Any]] = []
        self._said: dict[str, set[str]] = {}
        self._holding: list[Alarm] = []
        for line in before:
            self._keep(line)

    def add(self, number: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Look at a new line; returns it with the names of what holds in ``alarms``, where there is any."""
        self._keep(values)
        found = (check(self._lines) for check in self._checks)
        self._holding = [alarm for alarm in found if alarm is not None]
        for alarm in self._holding:
            if alarm.name not in self._said or not self._said[alarm.name].issuperset(alarm.about):
                self._note(f"{self._unit} {number}: {alarm.text}")
            self._said.setdefault(alarm.name, set()).update(alarm.about)
        return {**values} | ({"alarms": [alarm.name for alarm in self._holding]} if self._holding else {})

    def end(self) -> None:
        """Note what still holds."""
        for alarm in self._holding:
            self._note(f"at the end: {alarm.text}")

    def _keep(self, line: Mapping[str, Any]) -> None:
        self._lines.append(line)
        del self._lines[HEAD:-RECENT]


def cut_off_text(field: str, max_tokens: int, answers: int) -> str:
    """Return what to say where every answer of a step was cut off; ``field`` is its limit, as ``--set`` takes it."""
    return (
        f"all {answers:,} answers were cut off at {max_tokens:,} tokens, so none is whole; use --set "
        f"{field}={4 * max_tokens}, or a model that ends its answers, one fine-tuned on examples"
    )


def learned(lines: Lines) -> bool:
    """Whether any logged step or rollout changed a weight: it had a gradient, a rate, and of a rollout an update."""
    return any(bool(line.get("lr")) and line.get("updates") != 0 and line.get("grad_norm") != 0 for line in lines)


def _values(lines: Lines, name: str) -> list[float]:
    """Return a metric of all lines that have it."""
    return [float(line[name]) for line in lines if isinstance(line.get(name), float | int)]


def _lasts(lines: Lines, name: str, holds: Callable[[float], bool]) -> bool:
    """Whether the last few lines all have a metric of which something holds."""
    found = [line.get(name) for line in lines[-IN_A_ROW:]]
    return len(found) == IN_A_ROW and all(value is not None and holds(value) for value in found)
