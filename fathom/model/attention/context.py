"""What all layers of one forward pass share: positions, masks and rotary tables, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
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

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """Put the parts' outputs, each (b, t, X), together as (B, T, X)."""
        if self.span.parts[0].rows is None:
            return outputs[0]
        return torch.cat([output.flatten(0, 1) for output in outputs])[None]
