"""Training: losses, schedule, optimizer, metrics, resumable state and the loop that joins them."""

from __future__ import annotations

from fathom.train.loop import Trainer, TrainSummary
from fathom.train.protocols import Loader, TokenBatch

__all__ = ["Loader", "TokenBatch", "TrainSummary", "Trainer"]
