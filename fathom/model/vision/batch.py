"""Preprocessed images, the vision towers' input.

A colours, X rows and Y columns of pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.errors import SpecError
from fathom.model.device import to_device
from fathom.spec.vision import VisionSpec


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Images after resizing, padding and normalisation, three colours each.

    ``low_IAXY`` is for the SigLIP tower, ``high_IAXY`` shows the same images larger, for the SAM tower where there is
    one.
    """

    low_IAXY: Tensor
    high_IAXY: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What it holds."""
        return self.low_IAXY, self.high_IAXY

    def part(self, rows: slice, device: torch.device) -> ImageBatch:
        """Return some of the images, on a device."""
        high_IAXY = None if self.high_IAXY is None else to_device(self.high_IAXY[rows], device)
        return ImageBatch(to_device(self.low_IAXY[rows], device), high_IAXY)

    def check(self, vision: VisionSpec) -> None:
        """Raise ``SpecError`` unless the towers of ``vision`` take images of these sizes."""
        _check_size("low_IAXY", self.low_IAXY, vision.low.image_size)
        if vision.high is None:
            if self.high_IAXY is not None:
                raise SpecError("high_IAXY", "the model has no high-resolution tower", "leave it out")
            return
        if self.high_IAXY is None:
            raise SpecError("high_IAXY", "is missing, but the model has a high-resolution tower", "give it")
        _check_size("high_IAXY", self.high_IAXY, vision.high.image_size)
        if len(self.high_IAXY) != len(self.low_IAXY):
            problem = f"holds {len(self.high_IAXY)} images, low_IAXY {len(self.low_IAXY)}"
            raise SpecError("high_IAXY", problem, "give each image in both sizes")


def _check_size(name: str, images: Tensor, size: int) -> None:
    if images.dim() != 4 or tuple(images.shape[1:]) != (3, size, size):
        raise SpecError(name, f"is {tuple(images.shape)} instead of (I, 3, {size}, {size})", "resize the images first")
