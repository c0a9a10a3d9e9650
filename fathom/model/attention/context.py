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
from fathom.model.cache import AttentionGroup, AttentionMetadata
from fathom.model.rope import RopeTable
from fathom.spec.rope import RopeLayout

LatentForm = Literal["auto", "expanded", "absorbed"]


@dataclass(frozen=True, slots=True)
class AttentionContext:
    """One forward pass as attention sees it; ``form`` chooses how latent attention is computed."""

    span: AttentionMetadata
    rope: RopeTable
    layout: RopeLayout
    form: LatentForm = "auto"

    def attend(self, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGV: Tensor, scale: float) -> Tensor:
        """Let every part's new tokens attend to each other and to those they go on from; returns (B, T, H V)."""
        parts = self.span.parts
        if parts[0].rows is None:
            return _attended(parts[0], (q_BTHK, k_BTGK, v_BTGV), (), scale)
        # Cut all parts at once: the gradient of a cut is then one copy, not a sum over parts of tensors full of zeros.
        sizes = [part.rows.stop - part.rows.start for part in parts if part.rows is not None]
        laid = zip(*(x[0].split_with_sizes(sizes) for x in (q_BTHK, k_BTGK, v_BTGV)), strict=True)
        outputs, base, begun = [], 0, (q_BTHK, k_BTGK, v_BTGV)
        for part, rows in zip(parts, laid, strict=True):
            assert part.rows is not None
            first: tuple[Tensor, ...] = ()
            if part.beginning is None:
                base, begun = part.rows.start, rows
            else:
                own = slice(part.beginning.start - base, part.beginning.stop - base)
                first = tuple(x[None, own].transpose(1, 2) for x in begun[1:])
            each = [x.view(-1, part.tokens, *x.shape[1:]) for x in rows]
            outputs.append(_attended(part, each, first, scale))
        return self.join(outputs)

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """Put the parts' outputs, each (b, t, X), together as (B, T, X)."""
        if self.span.parts[0].rows is None:
            return outputs[0]
        return torch.cat([output.flatten(0, 1) for output in outputs])[None]


def _attended(part: AttentionGroup, own: Sequence[Tensor], first: Sequence[Tensor], scale: float) -> Tensor:
    """One part's output, (b, t, H V), from its queries, keys and values (b, t, ...) and what is before them."""
    q_BHTK, k_BGTK, v_BGTV = (x.transpose(1, 2) for x in own)
    if part.beginning is None:
        out_BHTV = kernels.attention(q_BHTK, k_BGTK, v_BGTV, mask_B1TS=part.mask_B1TS, causal=part.causal, scale=scale)
    else:
        out_BHTV = kernels.shared_prefix_attention(q_BHTK, k_BGTK, v_BGTV, *first, mask_1TS=part.mask_BTS, scale=scale)
    return out_BHTV.transpose(1, 2).flatten(2)
