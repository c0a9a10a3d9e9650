"""What all layers of one forward pass share: positions, mask and rotary tables, computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fathom.model.cache import Span
from fathom.model.rope import RopeTable
from fathom.spec.rope import RopeLayout

LatentForm = Literal["auto", "expanded", "absorbed"]


@dataclass(frozen=True, slots=True)
class AttentionContext:
    """One forward pass as attention sees it; ``form`` chooses how latent attention is computed."""

    span: Span
    rope: RopeTable
    layout: RopeLayout
    form: LatentForm = "auto"

    @property
    def mask_B1TS(self) -> Tensor | None:
        """The mask with a place for heads."""
        return None if self.span.mask_BTS is None else self.span.mask_BTS[:, None]
