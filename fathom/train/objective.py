"""Objectives: the part of a training step that differs between pretraining, preferences and RL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from torch import Tensor

from fathom.model.decoder import Decoder
from fathom.train.loss import language_model_loss
from fathom.train.micro_batch import MicroBatch


@dataclass(frozen=True, slots=True)
class ObjectiveOutput:
    """A micro-batch's part of the whole batch's loss, with its graph, and sums for the metrics, without.

    ``loss_BT`` are nats of each predicted token, where the loss is that of a language model.
    """

    loss: Tensor
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    loss_BT: Tensor | None = None


class Objective(Protocol):
    """From hidden states to a loss. Losses of a batch's micro-batches add up to the batch's own, however it is cut."""

    def __call__(self, model: Decoder, hidden_BTD: Tensor, micro: MicroBatch) -> ObjectiveOutput:
        """Return the share of this micro-batch; ``hidden_BTD`` is the model's, after its last norm."""
        ...


@dataclass(frozen=True, slots=True)
class LanguageModelling:
    """Mean cross-entropy over all predicted tokens of the batch, none of which weighs more than another."""

    chunk_tokens: int

    def __call__(self, model: Decoder, hidden_BTD: Tensor, micro: MicroBatch) -> ObjectiveOutput:
        """Return the micro-batch's part of the mean."""
        loss = partial(language_model_loss, targets_BT=micro.targets_BT, chunk_tokens=self.chunk_tokens)
        mean, loss_BT = model.apply_head(hidden_BTD, loss)
        return ObjectiveOutput(mean * micro.target_fraction, loss_BT=loss_BT)
