"""Batches given to a runner as a stage would give them."""

from __future__ import annotations

from fathom.data.packed import PackedBatch
from fathom.spec.train import TrainSpec
from fathom.train.gradients import Gradients
from fathom.train.micro_batch import split
from fathom.train.protocols import TokenBatch
from fathom.train.step import StepRunner


def take(runner: StepRunner, batch: TokenBatch | PackedBatch, number: int, *, observe: bool) -> Gradients:
    """Cut a batch into micro-batches and leave its gradients in the parameters."""
    spec = runner.spec
    assert isinstance(spec, TrainSpec)
    micros = split(batch, spec.batch.micro_batch_size, spec.sequence_length, runner.device)
    sequences = len(batch.lengths) if isinstance(batch, PackedBatch) else len(batch.tokens_BT1)
    return runner.accumulate(micros, sequences, number, observe=observe)
