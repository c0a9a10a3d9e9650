"""Preprocessed images, the vision towers' input.

I images, C colours, H rows, W columns of pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.errors import SpecError
from fathom.spec.vision import VisionSpec


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Images after resizing, padding and normalisation, three colours each.

    ``low_ICHW`` is for the SigLIP tower, ``high_ICHW`` shows the same images larger, for the SAM tower where there is
    one.
    """

    low_ICHW: Tensor
    high_ICHW: Tensor | None = None

    def part(self, rows: slice, device: torch.device) -> ImageBatch:
        """Return some of the images, on a device."""
        high_ICHW = None if self.high_ICHW is None else self.high_ICHW[rows].to(device)
        return ImageBatch(self.low_ICHW[rows].to(device), high_ICHW)

    def check(self, vision: VisionSpec) -> None:
        """Raise ``SpecError`` unless the towers of ``vision`` take images of these sizes."""
        _check_size("low_ICHW", self.low_ICHW, vision.low.image_size)
        if vision.high is None:
            if self.high_ICHW is not None:
                raise SpecError("high_ICHW", "the model has no high-resolution tower", "leave it out")
            return
        if self.high_ICHW is None:
            raise SpecError("high_ICHW", "is missing, but the model has a high-resolution tower", "give it")
        _check_size("high_ICHW", self.high_ICHW, vision.high.image_size)
        if len(self.high_ICHW) != len(self.low_ICHW):
            problem = f"holds {len(self.high_ICHW)} images, low_ICHW {len(self.low_ICHW)}"
            raise SpecError("high_ICHW", problem, "give each image in both sizes")


def _check_size(name: str, images: Tensor, size: int) -> None:
    if images.dim() != 4 or tuple(images.shape[1:]) != (3, size, size):
        raise SpecError(name, f"is {tuple(images.shape)} instead of (I, 3, {size}, {size})", "resize the images first")
