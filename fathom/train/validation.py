"""The loss of held-out examples during training, and the weights at which it was lowest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fathom.checkpoint import store
from fathom.data.packed import PackedBatch
from fathom.errors import CheckpointError, ResourceError
from fathom.files import remove_directory
from fathom.model.adapters.attach import learned_state
from fathom.model.decoder import Decoder
from fathom.model.eval_mode import eval_mode
from fathom.train.micro_batch import split
from fathom.train.step import StepRunner

BEST = "best"
VALIDATION_LOSS = "validation_loss"
EVALUATIONS = 10
"""Evaluations of a stage, where it does not say after how many steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What is held out of a stage's data, as one batch; after ``patience`` evaluations without a lower loss it stops.

    Every rank of a group measures all of it.
    """

    batch: PackedBatch
    patience: int | None = None


def held_out_loss(runner: StepRunner, batch: PackedBatch, micro_batch: tuple[int, int]) -> dict[str, float]:
    """Return the stage's own objective over held-out examples as ``validation_loss``, and the objective's sums."""
    values: dict[str, list[Tensor]] = {VALIDATION_LOSS: []}
    with eval_mode(runner.model), torch.no_grad(), runner.autocast():
        for micro in split(batch, *micro_batch, runner.device):
            output = runner.model(micro.tokens_BT, packed=micro.packed)
            found = runner.objective(runner.model, output.hidden_BTD, micro)
            for name, value in {VALIDATION_LOSS: found.loss, **found.sums}.items():
                values.setdefault(name, []).append(value)
    return {name: sum(torch.stack(each).tolist()) if each else 0.0 for name, each in values.items()}


class BestWeights:
    """The trained weights at the lowest validation loss so far, in ``directory/best``, and when to stop.

    What happened before a resume is read from the ``evaluations`` that metrics.jsonl has up to it.
    """

    def __init__(
        self,
        model: Decoder,
        directory: Path,
        *,
        patience: int,
        evaluations: Sequence[Mapping[str, Any]],
        note: Callable[[str], None],
    ) -> None:
        self._model, self._path, self._patience, self._note = model, directory / BEST, patience, note
        self._forget()
        for row in evaluations:
            self._count(row["step"], row["evaluation"][VALIDATION_LOSS])
        if self.step and self._saved_step() != self.step:
            self._forget()

    @property
    def exhausted(self) -> bool:
        """Whether so many evaluations brought nothing that training is to stop."""
        return self._since >= self._patience

    def add(self, step: int, loss: float) -> None:
        """Take note of an evaluation, and keep the weights if there was none better."""
        if not self._count(step, loss):
            return
        try:
            store.save(
                self._path,
                tensors={"model": learned_state(self._model)},
                documents={BEST: {"step": step, "loss": loss}},
            )
        except ResourceError as error:
            self._note(f"step {step}: {error}; the best weights so far are not kept")
            self._forget()

    def restore(self, step: int) -> None:
        """Give the model its best weights, if they are not those it has at ``step``."""
        if self.step == step or math.isinf(self.loss) or not self._path.exists():
            return
        kept = store.Checkpoint.open(self._path).tensors("model")
        with torch.no_grad():
            for name, tensor in learned_state(self._model).items():
                tensor.copy_(kept[name])
        self._note(f"the result is the model of step {self.step}, whose validation loss of {self.loss:.3f} is lowest")

    def discard(self) -> None:
        """Remove the kept weights: the last checkpoint has them."""
        if self._path.exists():
            remove_directory(self._path)

    def _forget(self) -> None:
        self.loss, self.step, self._since = math.inf, 0, 0

    def _count(self, step: int, loss: float) -> bool:
        if loss < self.loss:
            self.loss, self.step, self._since = loss, step, 0
            return True
        self._since += 1
        return False

    def _saved_step(self) -> int | None:
        try:
            return int(store.Checkpoint.open(self._path).document(BEST)["step"])
        except (CheckpointError, KeyError, TypeError, ValueError):
            return None
