"""Vision towers: SigLIP, SAM, and the connectors from their features to image tokens."""

from __future__ import annotations

from fathom.model.vision.batch import ImageBatch
from fathom.model.vision.towers import VisionTowers

__all__ = ["ImageBatch", "VisionTowers"]
