"""How fine-tuning counts: batches in conversations or pairs, and what is held out to validate on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fathom.errors import SpecError
from fathom.spec import check
from fathom.spec.train import BatchSpec, TrainSpec, UpdateSpec

DEFAULT_EXAMPLES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochBatch:
    """What one optimizer step learns from: so many conversations, or pairs of answers, ``DEFAULT_EXAMPLES`` by default.

    Such a batch never reaches into the next epoch, so that the last of an epoch may be smaller. ``size`` counts packed
    rows of ``sequence_length`` tokens instead, as pretraining does.
    """

    conversations: int | None = None
    """Conversations of a step (sft).

    Unit: conversations
    Example: 8
    """
    pairs: int | None = None
    """Pairs of a better and a worse answer of a step (dpo, reward_model).

    Unit: pairs
    Example: 8
    """
    micro_batch_tokens: int | None = None
    """Tokens of one forward pass at most; 8,192 by default, or as many as the longest example has.

    Unit: tokens
    Example: 2048
    """
    size: int | None = None
    """Packed rows of a step, instead of conversations or pairs.

    Unit: rows of sequence_length tokens
    Example: 8
    """
    micro_batch_size: int | None = None
    """Rows of one forward pass, chosen to fit if left out; only with size.

    Unit: rows of sequence_length tokens
    Example: 4
    """
    initial_size: int | None = None
    """Rows of the first step, from which the batch grows to size; only with size.

    Unit: rows
    Example: 2
    """
    ramp_tokens: int = 0
    """Tokens over which the batch grows; only with size.

    Unit: tokens
    Example: 100000
    """

    def __post_init__(self) -> None:
        units = ("conversations", "pairs", "size")
        given = [name for name in units if getattr(self, name) is not None]
        for name in (*given, "micro_batch_tokens"):
            if getattr(self, name) is not None:
                check.positive(name, getattr(self, name))
        if len(given) > 1:
            raise SpecError(given[1], f"contradicts {given[0]}", "give one of conversations, pairs and size")
        if self.size is not None:
            if self.micro_batch_tokens is not None:
                raise SpecError(
                    "micro_batch_tokens", "is not used with size", "set micro_batch_size, or leave out size"
                )
            _ = self.rows
            return
        for name in ("micro_batch_size", "initial_size"):
            if getattr(self, name) is not None:
                raise SpecError(name, "counts rows, and the batch has no size", "set micro_batch_tokens, or give size")
        if self.ramp_tokens:
            raise SpecError("ramp_tokens", "needs a batch in rows", "give size and initial_size, or leave it out")

    @property
    def rows(self) -> BatchSpec | None:
        """The batch in rows; None where it counts conversations or pairs."""
        if self.size is None:
            return None
        return BatchSpec(
            size=self.size,
            micro_batch_size=self.micro_batch_size,
            initial_size=self.initial_size,
            ramp_tokens=self.ramp_tokens,
        )

    @property
    def examples(self) -> int:
        """Conversations or pairs of a step, where it does not count rows."""
        return self.conversations or self.pairs or DEFAULT_EXAMPLES

    def check_unit(self, used: str, other: str) -> None:
        """Refuse the unit of another kind of step."""
        if getattr(self, other) is not None:
            raise SpecError(f"train.batch.{other}", f"this step has no {other}", f"write {used} instead")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationSpec:
    """What is held out of a fine-tuning's data, never trained on, and measured meanwhile.

    Examples are chosen by the hash of their text, so that equal ones are on one side. A file of its own may be named
    instead; what is in it is not trained on either.
    """

    fraction: float | None = None
    """The share of the examples that is held out; 0 holds out none. Left out, a tenth where there are at least 20
    examples, but at most 64 of them.

    Example: 0.1
    """
    path: str | None = None
    """A file of held-out conversations or pairs instead, relative to the recipe; its columns are recognised.

    Example: "held_out.jsonl"
    """
    format: str | None = None
    """The form of that file's rows, where it is not recognised.

    Example: "messages"
    """
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Which columns of that file are those of the form.

    Example: { messages = "turns" }
    """

    def __post_init__(self) -> None:
        if self.fraction is not None:
            check.fraction("fraction", self.fraction, below=1.0)
        if self.path is None:
            for name in ("format", "fields"):
                if getattr(self, name):
                    raise SpecError(name, "is about a file", "name it by path, or leave this out")
        elif self.fraction is not None:
            raise SpecError("fraction", "contradicts path", "give one of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamplesTrainSpec(TrainSpec):
    """A stage whose ``batch`` counts conversations or pairs, so that its steps have unlike numbers of tokens.

    ``total_steps`` are all of its steps; a forward pass has at most ``micro_batch_tokens`` tokens.
    """

    total_steps: int
    """Optimizer steps of the stage.

    Unit: steps
    Example: 100
    """
    micro_batch_tokens: int
    """Tokens of one forward pass at most.

    Unit: tokens
    """

    def __post_init__(self) -> None:
        UpdateSpec.__post_init__(self)
        for name in ("sequence_length", "total_tokens", "total_steps", "micro_batch_tokens"):
            check.positive(name, getattr(self, name))

    @property
    def micro_batch(self) -> tuple[int, int]:
        """Rows of a forward pass, and the tokens of each."""
        return 1, self.micro_batch_tokens
