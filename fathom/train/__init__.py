"""Training: losses, schedule, optimizer, metrics, resumable state and the loop that joins them."""

from __future__ import annotations

from fathom.train.loop import Trainer, TrainSummary
from fathom.train.protocols import LoadedBatch, Loader, Progress

__all__ = ["LoadedBatch", "Loader", "Progress", "TrainSummary", "Trainer"]
