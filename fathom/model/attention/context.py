"""What all layers of one forward pass share: positions, masks and rotary tables, computed once.

B batch, T new tokens, H heads, G key-value heads, K query and key width, V value width; b and t those of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fathom import kernels
from fathom.model.cache import Part, Span
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

    def attend(self, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGV: Tensor, scale: float) -> Tensor:
        """Let every part's new tokens attend to each other and to those they go on from; returns (B, T, H V)."""
        return self.join([_attended(part, q_BTHK, k_BTGK, v_BTGV, scale) for part in self.span.parts])

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """Put the parts' outputs, each (b, t, X), together as (B, T, X)."""
        if self.span.parts[0].rows is None:
            return outputs[0]
        return torch.cat([output.flatten(0, 1) for output in outputs])[None]


def _attended(part: Part, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGV: Tensor, scale: float) -> Tensor:
    """One part's output, (b, t, H V)."""
    own = [part.select(x).transpose(1, 2) for x in (q_BTHK, k_BTGK, v_BTGV)]
    if part.beginning is None:
        out_BHTV = kernels.attention(*own, mask_B1TS=part.mask_B1TS, causal=part.causal, scale=scale)
    else:
        first = [part.shared(x).transpose(1, 2) for x in (k_BTGK, v_BTGV)]
        out_BHTV = kernels.continued_attention(*own, *first, mask_1TS=part.mask_BTS, scale=scale)
    return out_BHTV.transpose(1, 2).flatten(2)
