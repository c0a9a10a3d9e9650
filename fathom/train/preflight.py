"""What can be known of a training stage before its first step: a schedule that never reaches its rate, data read too
often. Pure functions of the spec and a few counts; each returns a sentence to show, or raises where it is hopeless.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fathom.errors import SpecError
from fathom.locale import tr
from fathom.progress import amount
from fathom.spec.train import BatchSpec, TrainSpec, UpdateSpec

HOPELESS_RATE = 0.1
"""A stage whose learning rate never exceeds this share of ``optimizer.lr`` is refused."""
WARMUP_SHARE = 0.03
"""The warm-up that remedies suggest, as a share of the stage's steps."""

MANY_EPOCHS = 10
"""Fine-tuning that reads its examples more often is warned of."""
FEW_PASSES, MOST_PASSES = 10, 1000
"""Up to 4 passes teach nearly as much as new text, beyond 16 next to nothing (Muennighoff et al. 2023, "Scaling
Data-Constrained Language Models"); a stage of more than 1,000 is refused."""


def warmup_warning(stage: str, spec: UpdateSpec, steps: int) -> str | None:
    """Return what to say of a warm-up that lasts as long as the stage or longer; None for a shorter one.

    ``stage`` is where the spec stands in a recipe, as ``--set`` takes it: ``pretrain.train``.

    Raises:
        SpecError: the rate never exceeds ``HOPELESS_RATE`` of ``optimizer.lr``.
    """
    warmup = spec.schedule.warmup_of(steps)
    if not warmup or warmup < max(2, steps):
        return None
    peak, wanted = min(1.0, steps / warmup), max(1, round(WARMUP_SHARE * steps))
    problem = f"a warm-up of {warmup:,} steps in a stage of {steps:,}"
    remedy = f"--set {stage}.schedule.warmup_steps={wanted}"
    if peak < HOPELESS_RATE:
        rate = f"the learning rate never exceeds {peak:.1%} of optimizer.lr {spec.optimizer.lr:g}"
        raise SpecError(f"{stage}.schedule.warmup_steps", f"{problem}: {rate}", f"use {remedy}")
    return (
        f"{stage}.schedule: {problem}: the learning rate reaches {peak:.0%} of optimizer.lr {spec.optimizer.lr:g}, and "
        f"only at the last step; a shorter warm-up learns more: {remedy}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextReading:
    """How often a stage reads its text.

    ``tokens`` are those of each source, ``weights`` its share of what is read; ``share`` is the part of the stage's
    sequences that are text, and not pictures or made up.
    """

    tokens: Mapping[str, int]
    weights: Mapping[str, float]
    share: float = 1.0

    @property
    def total(self) -> int:
        """Tokens of all sources."""
        return sum(self.tokens.values())

    def passes(self, total_tokens: float) -> float:
        """Passes over all text in so many tokens of training."""
        return total_tokens * self.share / self.total

    def most(self, total_tokens: float) -> tuple[str, float]:
        """Return the source that is read most often, and how often."""
        all_weights = sum(self.weights.values())
        by_source = {
            name: total_tokens * self.share * self.weights[name] / all_weights / tokens
            for name, tokens in self.tokens.items()
        }
        name = max(by_source, key=lambda name: by_source[name])
        return name, by_source[name]

    def fitting(self, spec: TrainSpec) -> int:
        """Return the tokens of training that read no source more than ``FEW_PASSES`` times, or else one batch."""
        batch = spec.batch.at(0) * spec.sequence_length
        return max(batch, int(FEW_PASSES * spec.total_tokens / self.most(spec.total_tokens)[1]) // batch * batch)


def reading_lines(stage: str, spec: TrainSpec, text: TextReading) -> list[str]:
    """Return how often a stage reads its text, and a warning where any source is read more than ``FEW_PASSES`` times.

    Raises:
        SpecError: a source is shorter than one sequence, or all text is read more than ``MOST_PASSES`` times.
    """
    total, passes = spec.total_tokens, text.passes(spec.total_tokens)
    short = min(text.tokens, key=lambda name: text.tokens[name])
    if text.tokens[short] <= spec.sequence_length:
        raise SpecError(
            f"{stage}.sequence_length",
            f"source {short!r} has {text.tokens[short]:,} tokens to train on, fewer than one sequence of "
            f"{spec.sequence_length:,}",
            f"add text, or use --set {stage}.sequence_length={_shorter(text.tokens[short])}",
        )
    remedy = f"add text, or use --set {stage}.total_tokens={text.fitting(spec)}"
    if passes > MOST_PASSES:
        raise SpecError(
            f"{stage}.total_tokens",
            f"{total:,} tokens are {passes:,.0f} passes over {text.total:,} tokens of text, which would be learned by "
            "heart and nothing else",
            remedy,
        )
    figure = f"{passes:.2g}" if passes < 10 else f"{passes:,.0f}"
    counted = {"tokens": amount(total), "passes": figure, "text": amount(text.total)}
    lines = [tr("{tokens} tokens = {passes} passes over {text} tokens of text", **counted)]
    name, most = text.most(total)
    if most > FEW_PASSES and text.fitting(spec) < total:
        lines.append(
            f"source {name!r} is read {most:,.0f} times; beyond {FEW_PASSES} passes each one teaches little, and the "
            f"text is learned by heart: {remedy}" + (", or lower its weight" if len(text.tokens) > 1 else "")
        )
    return lines


def _shorter(tokens: int) -> int:
    """Return a length of sequences that so many tokens fill a few times, a power of two."""
    wanted = max(1, tokens // 4)
    return 1 << (wanted.bit_length() - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSet:
    """What is read in epochs: so many examples, called ``unit``, of so many tokens together."""

    unit: str
    examples: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.examples:,} {self.unit} of {amount(self.tokens)} tokens"


def epoch_lines(stage: str, data: ExampleSet, epochs: float, steps: int) -> list[str]:
    """Return how long a stage of epochs is, and a warning where they are more than ``MANY_EPOCHS``."""
    times = tr("1 epoch") if epochs == 1 else tr("{count} epochs", count=f"{epochs:g}")
    taken = tr("1 step") if steps == 1 else tr("{count} steps", count=f"{steps:,}")
    read = {"count": f"{data.examples:,}", "unit": tr(data.unit), "tokens": amount(data.tokens)}
    lines = [tr("{epochs} over {count} {unit} of {tokens} tokens = {steps}", epochs=times, steps=taken, **read)]
    if epochs > MANY_EPOCHS:
        lines.append(
            f"{stage}.epochs: each of the {data.unit} is read {epochs:g} times and learned by heart; 2 to 5 times are "
            f"usual: add data, or use --set {stage}.epochs=3"
        )
    return lines


def unfilled_batch(stage: str, data: ExampleSet, epochs: float, batch: BatchSpec, sequence_length: int) -> SpecError:
    """Return the error for examples that fill no batch of rows, with every way that works."""
    rows, total = batch.at(0), round(epochs * data.tokens)
    needed = rows * sequence_length
    enough = math.ceil(needed / data.tokens)
    ways = [f"--set {stage}.epochs={enough}"] if enough <= MANY_EPOCHS else []
    ways.append(f"--set {stage}.batch={{{'conversations' if data.unit == 'conversations' else 'pairs'}=8}}")
    fitting = total // sequence_length
    if fitting:
        ways.insert(0, f"--set {stage}.batch.size={fitting} --set {stage}.batch.micro_batch_size=1")
    problem = f"{epochs:g} x {data} do not fill one batch of {rows} rows x {sequence_length:,} = {needed:,} tokens"
    return SpecError(f"steps.{stage}.batch.size", problem, f"add data, or use {', or '.join(ways)}")
