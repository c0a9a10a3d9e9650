"""Training: losses, schedule, optimizer, metrics, resumable state and the loop that joins them."""

from __future__ import annotations

from fathom.train.loop import Trainer, TrainSummary
from fathom.train.protocols import Loader, Progress, TokenBatch

__all__ = ["Loader", "Progress", "TokenBatch", "TrainSummary", "Trainer"]
