"""TrainSpec: one training stage, from optimizer to checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fathom.errors import SpecError
from fathom.spec import check

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamWSpec:
    """AdamW as DeepSeek LLM, MoE, V2 and V3 publish it: betas 0.9 and 0.95, weight decay 0.1."""

    lr: float
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        check.positive("lr", self.lr)
        check.fraction("beta1", self.beta1)
        check.fraction("beta2", self.beta2)
        check.positive("eps", self.eps)
        check.not_negative("weight_decay", self.weight_decay)


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """Linear warm-up from 0 to the full rate, which every schedule begins with.

    A ``warmup_steps`` of 0 is read as a ``warmup_fraction`` of 0.
    """

    warmup_steps: int | None = None
    """Steps over which the learning rate rises from 0 to its full value; ``warmup_fraction`` where it is not set.

    Unit: optimizer steps.
    Paper: 2,000 for DeepSeek LLM, MoE, V2 and V3.
    """
    warmup_fraction: float = 0.0
    """The warm-up as a share of the stage's steps, at least 1 step unless it is 0, where ``warmup_steps`` is not set.

    Unit: share of the stage's steps.
    """

    def __post_init__(self) -> None:
        check.fraction("warmup_fraction", self.warmup_fraction)
        if self.warmup_steps is not None:
            check.not_negative("warmup_steps", self.warmup_steps)
            if self.warmup_steps == 0:
                object.__setattr__(self, "warmup_steps", None)
                object.__setattr__(self, "warmup_fraction", 0.0)

    def warmup_of(self, steps: int) -> int:
        """Return the warm-up's length in a stage of so many optimizer steps."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return max(1, round(self.warmup_fraction * steps)) if self.warmup_fraction else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDecay(WarmUp):
    """Linear warm-up, then the rate falls by ``factor`` at each milestone (DeepSeek LLM §2.3, V2 §3.1.2).

    ``milestones`` are fractions of the stage's tokens: (0.6, 0.9) for V2, (0.8, 0.9) for the others.
    """

    kind: ClassVar[str] = "step"
    warmup_fraction: float = 0.03
    """The warm-up as a share of the stage's steps, at least 1 step unless it is 0, where ``warmup_steps`` is not set.

    Unit: share of the stage's steps.
    """
    milestones: tuple[float, ...] = (0.6, 0.9)
    factor: float = 0.316

    def __post_init__(self) -> None:
        WarmUp.__post_init__(self)
        check.fraction("factor", self.factor)
        for value in self.milestones:
            check.fraction("milestones", value)
        if list(self.milestones) != sorted(self.milestones):
            raise SpecError("milestones", f"{self.milestones} do not rise", "list the fractions in rising order")


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineDecay(WarmUp):
    """Linear warm-up, constant until ``start``, then a half cosine down to ``final`` x the rate at the end."""

    kind: ClassVar[str] = "cosine"
    start: float = 0.0
    final: float = 0.1

    def __post_init__(self) -> None:
        WarmUp.__post_init__(self)
        check.fraction("start", self.start)
        check.fraction("final", self.final)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant(WarmUp):
    """Linear warm-up, then a constant rate."""

    kind: ClassVar[str] = "constant"


Schedule = StepDecay | CosineDecay | Constant


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSpec:
    """Sequences per optimizer step, ramped linearly from ``initial_size`` over the first ``ramp_tokens`` tokens.

    A step accumulates gradients over micro-batches of at most ``micro_batch_size`` sequences.
    """

    size: int
    micro_batch_size: int
    initial_size: int | None = None
    ramp_tokens: int = 0

    def __post_init__(self) -> None:
        check.positive("size", self.size)
        check.positive("micro_batch_size", self.micro_batch_size)
        check.not_negative("ramp_tokens", self.ramp_tokens)
        check.multiple_of("size", self.size, min(self.micro_batch_size, self.size), why="whole micro-batches")
        if self.initial_size is None:
            if self.ramp_tokens:
                raise SpecError("ramp_tokens", "a ramp needs a start", "set initial_size")
            return
        check.positive("initial_size", self.initial_size)
        if self.initial_size > self.size:
            raise SpecError("initial_size", f"{self.initial_size} exceeds size {self.size}", "start at most at size")
        check.multiple_of("initial_size", self.initial_size, self.micro_batch_size, why="whole micro-batches")

    def at(self, tokens_seen: int) -> int:
        """Sequences in the step that starts after ``tokens_seen`` tokens: whole micro-batches, never above size."""
        if self.initial_size is None or tokens_seen >= self.ramp_tokens:
            return self.size
        raw = self.initial_size + (self.size - self.initial_size) * tokens_seen / self.ramp_tokens
        return min(self.size, max(1, int(raw) // self.micro_batch_size) * self.micro_batch_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointing:
    """When to save: every so many steps or seconds, whichever comes first; the last ``keep`` are kept."""

    every_steps: int | None = None
    every_seconds: float | None = 300.0
    keep: int = 2

    def __post_init__(self) -> None:
        if self.every_steps is not None:
            check.positive("every_steps", self.every_steps)
        if self.every_seconds is not None:
            check.positive("every_seconds", self.every_seconds)
        check.positive("keep", self.keep)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSpec:
    """An optimizer step: what pretraining, fine-tuning and reinforcement learning have in common.

    ``precision`` auto is float32 on CPU and bfloat16 autocast on GPU. ``loss_chunk_tokens`` bounds how many rows of
    logits exist at once. ``mtp_loss_weight`` is V3's lambda; MTP modules are not trained where
    sequences are packed. ``frozen`` lists parts that are not trained, as names or prefixes of names of the model's
    state, for instance ``vision.low``.
    """

    optimizer: AdamWSpec
    schedule: Schedule = field(default_factory=Constant)
    max_grad_norm: float = 1.0
    mtp_loss_weight: float = 0.3
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    compile: bool = False
    loss_chunk_tokens: int = 1024
    log_every_steps: int = 10
    evaluate_every_steps: int | None = None
    checkpoint: Checkpointing = field(default_factory=Checkpointing)
    frozen: tuple[str, ...] = ()
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("max_grad_norm", "loss_chunk_tokens", "log_every_steps"):
            check.positive(name, getattr(self, name))
        check.not_negative("mtp_loss_weight", self.mtp_loss_weight)
        check.one_of("precision", self.precision, ("auto", "float32", "bfloat16"))
        if self.evaluate_every_steps is not None:
            check.positive("evaluate_every_steps", self.evaluate_every_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec(UpdateSpec):
    """One stage of training on packed sequences of ``sequence_length`` tokens until ``total_tokens`` were seen.

    ``evaluate_every_steps`` measures held-out bits per byte.
    """

    sequence_length: int
    total_tokens: int
    batch: BatchSpec
    schedule: Schedule = field(default_factory=StepDecay)

    def __post_init__(self) -> None:
        UpdateSpec.__post_init__(self)
        for name in ("sequence_length", "total_tokens"):
            check.positive(name, getattr(self, name))
        if self.total_tokens < self.batch.at(0) * self.sequence_length:
            raise SpecError("total_tokens", f"{self.total_tokens} is less than one batch", "raise it or shrink batch")
