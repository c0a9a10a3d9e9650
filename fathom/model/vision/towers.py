"""The vision towers with their connector: from images to embeddings of image tokens.

A colours, X rows and Y columns of pixels; Z features of the low tower.
"""

from __future__ import annotations

from torch import Tensor, nn

from fathom.model.vision.batch import ImageBatch
from fathom.model.vision.connector import HybridConnector, MLPConnector
from fathom.model.vision.sam import SamTower
from fathom.model.vision.siglip import SiglipTower
from fathom.spec.vision import VisionSpec


class VisionTowers(nn.Module):
    """SigLIP, beside it SAM where the spec has one, and the connector to a language model of ``width``."""

    def __init__(self, vision: VisionSpec, width: int) -> None:
        super().__init__()
        self.spec = vision
        self.low = SiglipTower(vision.low)
        self.high = None if vision.high is None else SamTower(vision.high, vision.low.grid)
        self.connector: MLPConnector | HybridConnector
        if vision.high is None:
            self.connector = MLPConnector(vision.low, width)
        else:
            self.connector = HybridConnector(vision.low, vision.high, width)

    def forward(self, images: ImageBatch) -> Tensor:
        """Return embeddings of image tokens, (I, T, D).

        Flattened over images and tokens they are the ``features_ND`` of ``Decoder.forward``.

        Raises:
            SpecError: the images do not have the towers' sizes.
        """
        images.check(self.spec)
        kind = self.low.position_embedding.weight.dtype
        low_ITZ = self.low(images.low_IAXY.to(kind))
        if self.high is None or images.high_IAXY is None:
            features_ITD: Tensor = self.connector(low_ITZ)
        else:
            features_ITD = self.connector(low_ITZ, self.high(images.high_IAXY.to(kind)))
        return features_ITD
