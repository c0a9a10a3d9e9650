"""TrainSpec: one training stage, from optimizer to checkpoints."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fathom.errors import SpecError
from fathom.spec import check
from fathom.spec.adapter import LoraSpec

MICRO_BATCH_TOKENS = 8192
"""Tokens of a micro-batch at most where nothing else is said."""
Precision = Literal["auto", "float32", "tf32", "bfloat16"]
_HIGHEST_NARROW_BETA = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class MuonSpec:
    """Muon (Jordan 2024), scaled to AdamW's updates (Liu et al. 2025): the matrices of hidden layers move by their
    momentum, orthogonalised; embedding, head, norms, biases, routers and vision towers stay with AdamW.
    """

    momentum: float = 0.95
    """Decay of the running mean of gradients."""
    ns_steps: int = 5
    """Newton-Schulz iterations of each step."""

    def __post_init__(self) -> None:
        check.fraction("momentum", self.momentum)
        check.count("ns_steps", self.ns_steps, 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamWSpec:
    """AdamW as DeepSeek LLM, MoE, V2 and V3 publish it: betas 0.9 and 0.95, weight decay 0.1."""

    lr: float
    """Highest learning rate; the schedule multiplies it.

    Paper: 2.4e-4 (V2 §3.1.2), 4.2e-4 (V2-Lite), 2.2e-4 (V3 §4.2); 5e-6 (V2 §4, SFT); 1e-6 (DeepSeekMath §4.2, GRPO),
      3e-6 (R1)
    Example: 3e-4
    """
    beta1: float = 0.9
    """Decay of the running mean of gradients.

    Paper: 0.9 (V2 §3.1.2)
    """
    beta2: float = 0.95
    """Decay of the running mean of squared gradients.

    Paper: 0.95 (V2 §3.1.2)
    """
    eps: float = 1e-8
    """Added to the root of the mean of squared gradients."""
    weight_decay: float = 0.1
    """Share of each matrix, times the learning rate, that a step takes away.

    Paper: 0.1 (V2 §3.1.2)
    """
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    """What running means are kept in; bfloat16 halves their memory and their part of checkpoints.

    Paper: bfloat16 (V3 §3.3.3)
    """
    muon: MuonSpec | None = None
    """Muon for the matrices of hidden layers, at the same lr and weight_decay; left out, AdamW trains everything."""

    def __post_init__(self) -> None:
        check.one_of("state_dtype", self.state_dtype, ("float32", "bfloat16"))
        if self.state_dtype == "bfloat16" and self.beta2 > _HIGHEST_NARROW_BETA:
            problem = f"bfloat16 would round away the changes of a mean that decays by {self.beta2}"
            raise SpecError("state_dtype", problem, f"lower beta2 to {_HIGHEST_NARROW_BETA} or less, or use float32")
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
    """Steps over which the learning rate rises from 0 to its highest; left out, warmup_fraction decides.

    Unit: optimizer steps
    Paper: 2000 (LLM §2.3, MoE, V2 §3.1.2, V3 §4.2)
    Example: 100
    """
    warmup_fraction: float = 0.0
    """The warm-up as a share of the stage's steps, at least 1 step unless it is 0; only where warmup_steps is not
    given.

    Unit: fraction
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
    """Linear warm-up, then the rate falls by a factor at each milestone (DeepSeek LLM §2.3, V2 §3.1.2)."""

    kind: ClassVar[str] = "step"
    warmup_fraction: float = 0.03
    milestones: tuple[float, ...] = (0.6, 0.9)
    """Fractions of the stage's tokens at which the rate falls, in rising order.

    Unit: fraction
    Paper: [0.6, 0.9] (V2 §3.1.2), [0.8, 0.9] (LLM §2.3, MoE, V2-Lite)
    """
    factor: float = 0.316
    """What the rate is multiplied by at each milestone.

    Paper: 0.316 (V2 §3.1.2)
    """

    def __post_init__(self) -> None:
        WarmUp.__post_init__(self)
        check.fraction("factor", self.factor)
        for value in self.milestones:
            check.fraction("milestones", value)
        if list(self.milestones) != sorted(self.milestones):
            raise SpecError(
                "milestones", f"{self.milestones} do not rise", "list the fractions in rising order", alone=True
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineDecay(WarmUp):
    """Linear warm-up, constant until ``start``, then a half cosine down to ``final`` x the rate at the end."""

    kind: ClassVar[str] = "cosine"
    start: float = 0.0
    """Fraction of the stage's tokens until which the rate stays at its highest.

    Unit: fraction
    """
    final: float = 0.1
    """Rate at the end as a fraction of the highest.

    Unit: fraction
    Paper: 0.1 (V3 §4.2: 2.2e-4 → 2.2e-5), 0.2 (V3 §5.1, SFT)
    """

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
    """Sequences per optimizer step, with an optional ramp at the beginning."""

    size: int
    """Sequences of one optimizer step.

    Unit: sequences
    Paper: 9216 (V2 §3.1.2), 4608 (V2-Lite), 15360 (V3 §4.2)
    Example: 8
    """
    micro_batch_size: int | None = None
    """Sequences of one forward and backward pass at most; a step adds up the gradients of as many passes as it needs.
    Left out: the largest divisor of size, and of initial_size, that makes a pass of at most 8,192 tokens.

    Unit: sequences
    Example: 8
    """
    initial_size: int | None = None
    """Sequences of the first steps, from which size is reached linearly over ramp_tokens; left out, there is no ramp.

    Unit: sequences
    Paper: 2304 (V2 §3.1.2), 3072 (V3 §4.2)
    Example: 8
    """
    ramp_tokens: int = 0
    """Tokens over which the batch grows from initial_size to size.

    Unit: tokens
    Paper: 225B (V2 §3.1.2), 469B (V3 §4.2)
    """

    def __post_init__(self) -> None:
        check.positive("size", self.size)
        check.not_negative("ramp_tokens", self.ramp_tokens)
        if self.micro_batch_size is not None:
            check.positive("micro_batch_size", self.micro_batch_size)
            check.multiple_of("size", self.size, min(self.micro_batch_size, self.size), why="whole micro-batches")
        if self.initial_size is None:
            if self.ramp_tokens:
                raise SpecError("ramp_tokens", "a ramp needs a start", "set initial_size")
            return
        check.positive("initial_size", self.initial_size)
        if self.initial_size > self.size:
            raise SpecError("initial_size", f"{self.initial_size} exceeds size {self.size}", "start at most at size")
        if self.micro_batch_size is not None:
            check.multiple_of("initial_size", self.initial_size, self.micro_batch_size, why="whole micro-batches")

    def for_length(self, sequence_length: int) -> BatchSpec:
        """Return the batch with a ``micro_batch_size``: its own, or one chosen for sequences of so many tokens."""
        if self.micro_batch_size is not None:
            return self
        common = math.gcd(self.size, self.initial_size or self.size)
        most = max(1, MICRO_BATCH_TOKENS // sequence_length)
        chosen = max(d for d in range(1, min(common, most) + 1) if common % d == 0)
        return dataclasses.replace(self, micro_batch_size=chosen)

    def at(self, tokens_seen: int) -> int:
        """Sequences in the step that starts after ``tokens_seen`` tokens: whole micro-batches, never above size."""
        if self.initial_size is None or tokens_seen >= self.ramp_tokens:
            return self.size
        raw = self.initial_size + (self.size - self.initial_size) * tokens_seen / self.ramp_tokens
        micro = self.micro_batch_size or 1
        return min(self.size, max(1, int(raw) // micro) * micro)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointing:
    """When to save, every so many steps or seconds, whichever comes first, and what is kept."""

    every_steps: int | None = None
    """Save after so many steps; left out, time alone decides.

    Unit: optimizer steps
    Example: 100
    """
    every_seconds: float | None = 300.0
    """Save after so many seconds.

    Unit: seconds
    """
    keep: int = 2
    """Checkpoints that are kept, the latest ones.

    Unit: checkpoints
    """
    keep_optimizer: bool = False
    """Whether a finished step keeps its checkpoints whole, so that a resume can make it longer; otherwise only the
    last one stays, without the optimizer's state, which is twice the weights.
    """

    def __post_init__(self) -> None:
        if self.every_steps is not None:
            check.positive("every_steps", self.every_steps)
        if self.every_seconds is not None:
            check.positive("every_seconds", self.every_seconds)
        check.positive("keep", self.keep)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSpec:
    """An optimizer step: what pretraining, fine-tuning and reinforcement learning have in common."""

    optimizer: AdamWSpec
    """The optimizer and its learning rate."""
    schedule: Schedule = field(default_factory=Constant)
    """How the learning rate moves: warm-up, then constant, a cosine, or falling in steps.

    Paper: step (V2 §3.1.2), cosine (V3 §4.2)
    """
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm where they exceed it.

    Paper: 1.0 (V2 §3.1.2)
    """
    mtp_loss_weight: float = 0.3
    """Weight of the multi-token-prediction loss (V3's lambda), for models that have such modules; none are trained on
    packed samples.

    Paper: 0.3 → 0.1 (V3 §4.2)
    """
    precision: Precision = "auto"
    """float32, or bfloat16 autocast; auto is bfloat16 on a GPU, and on a CPU where it was measured to be faster (fathom
    doctor says so; never where a model learns from its own answers), else float32. tf32 is float32 whose factors an
    NVIDIA GPU rounds to 10 bits, except routers'.
    """
    activation_checkpointing: bool = False
    """Whether layers are computed again in the backward pass, which takes time and saves memory."""
    compile: bool = False
    """Whether torch.compile is used."""
    loss_chunk_tokens: int = 1024
    """Tokens whose logits exist at once: fewer take less memory.

    Unit: tokens
    """
    log_every_steps: int = 10
    """Write metrics every so many steps.

    Unit: optimizer steps
    """
    evaluate_every_steps: int | None = None
    """Measure held-out bits per byte every so many steps; left out, never during the stage.

    Unit: optimizer steps
    Example: 100
    """
    checkpoint: Checkpointing = field(default_factory=Checkpointing)
    """When to save, and how many checkpoints are kept."""
    frozen: tuple[str, ...] = ()
    """Parts that are not trained, as names of the model's state or their beginnings.

    Example: ["vision.low"]
    """
    adapter: LoraSpec | None = None
    """Low-rank adapters that are trained in place of the weights; none trains the weights themselves."""
    seed: int = 1
    """Decides the order of the data and all that is drawn at random."""

    def __post_init__(self) -> None:
        if self.adapter is not None and self.optimizer.muon is not None:
            raise SpecError("optimizer.muon", "trains whole matrices, not an adapter's", "leave muon or adapter out")
        if self.adapter is not None and self.frozen:
            raise SpecError("frozen", "goes with no adapter, which freezes all weights", "leave it out; name targets")
        for name in ("max_grad_norm", "loss_chunk_tokens", "log_every_steps"):
            check.positive(name, getattr(self, name))
        check.not_negative("mtp_loss_weight", self.mtp_loss_weight)
        check.one_of("precision", self.precision, ("auto", "float32", "tf32", "bfloat16"))
        if self.evaluate_every_steps is not None:
            check.positive("evaluate_every_steps", self.evaluate_every_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec(UpdateSpec):
    """One stage of training on packed sequences."""

    sequence_length: int
    """Tokens of one sequence; texts are packed into sequences without gaps.

    Unit: tokens
    Paper: 4096 (V2 §3.1.2, V3 §4.2)
    Example: 256
    """
    total_tokens: int
    """The stage ends once so many tokens were seen.

    Unit: tokens
    Paper: 8.1T (V2 §3.1.2), 5.7T (V2-Lite), 14.8T (V3 §4.2)
    Example: 1_000_000
    """
    batch: BatchSpec
    """Sequences of one optimizer step."""
    schedule: Schedule = field(default_factory=StepDecay)
    """How the learning rate moves: warm-up, then falling in steps, constant, or a cosine.

    Paper: step (V2 §3.1.2), cosine (V3 §4.2)
    """

    def __post_init__(self) -> None:
        UpdateSpec.__post_init__(self)
        for name in ("sequence_length", "total_tokens"):
            check.positive(name, getattr(self, name))
        object.__setattr__(self, "batch", self.batch.for_length(self.sequence_length))
        if self.total_tokens < self.batch.at(0) * self.sequence_length:
            raise SpecError("total_tokens", f"{self.total_tokens} is less than one batch", "raise it or shrink batch")

    @property
    def micro_batch(self) -> tuple[int, int]:
        """Rows of a forward pass, and the tokens of each."""
        return self.batch.micro_batch_size or self.batch.size, self.sequence_length
